"""No option that nothing reads, and none that nobody ever sets to anything but its default.

An option is a field of a config: a frozen keyword-only dataclass with defaults. It is varied where
a preset of the library, a notebook, a benchmark or a test gives it another value in

- a call of its class: `LossConfig(pixel="l1")`;
- `override` or `dataclasses.replace` of a config that holds it, or a call of a function that
  returns one, by keyword or by dict: `override(config, {"losses.pixel": "l1"})`;
- a call of a function that passes what it gets on to one of these: `gmm_curve(restarts=3)`;
- a dict all of whose keys are paths from one class that the file uses; any class, if it has three.

A name counts by the values that it gets in its file; `seed=seed` of a parameter, and
`seed=self.seed`, only pass on.
"""

import ast
import functools
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHANGERS = ("override", "replace")  # their first argument is the config


def parse(path):
    """A Python file, or the code cells of a notebook, as a tree."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    return compile(text, str(path), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


LIBRARY = [parse(path) for path in sorted(ROOT.glob("maetok_lab/**/*.py"))]


def merge(sets, more):
    """Add to each set of a dict."""
    for name, values in more.items():
        sets[name] = sets.get(name, set()) | values


def name_of(node):
    """The last part of a dotted name; "" for anything else."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


# The configs --------------------------------------------------------------------------------------


def config_fields():
    """{class: {field: (annotation, default)}} of every config; without a default it is None."""
    configs = {}
    for node in (node for tree in LIBRARY for node in ast.walk(tree)):
        if isinstance(node, ast.ClassDef):
            words = " ".join(map(ast.unparse, node.decorator_list))
            lines = [line for line in node.body if isinstance(line, ast.AnnAssign)]
            frozen = "frozen=True" in words and "kw_only=True" in words
            if frozen and any(line.value for line in lines):
                fields = {line.target.id: (line.annotation, default_of(line)) for line in lines}
                configs[node.name] = fields
    return configs


def default_of(line):
    """`not_in_fingerprint(4)` and `younger(4)` stand for 4."""
    value = line.value
    wraps = name_of(getattr(value, "func", None)) in ("not_in_fingerprint", "younger")
    return value.args[0] if wraps else value


CONFIGS = config_fields()
ALIASES = [  # names of types, such as Precision
    (name_of(node.targets[0]), node.value)
    for tree in LIBRARY
    for node in tree.body
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript)
]


def options():
    """(class, field) of every option; one that a Literal allows a single value is a record."""
    for owner, fields in CONFIGS.items():
        for field, (annotation, _) in fields.items():
            if not re.fullmatch(r"Literal\['\w*'\]", ast.unparse(annotation)):
                yield owner, field


def configs_in(annotation):
    """The configs that an annotation names."""
    words = {getattr(node, "value", None) or name_of(node) for node in ast.walk(annotation)}
    return {word for word in words if isinstance(word, str)} & set(CONFIGS)


def resolve(owner, path):
    """The (class, field) at the end of a path from a class; None where it leads nowhere."""
    head, _, tail = path.replace("__", ".").partition(".")
    if head not in CONFIGS[owner]:
        return None
    if not tail:
        return owner, head
    inner = configs_in(CONFIGS[owner][head][0])
    return resolve(inner.pop(), tail) if inner else None


# What the names of a file are ---------------------------------------------------------------------


class Names:
    """Which configs the names of a file are, and which values they get.

    Scopes are not kept apart: a name that is a config in one function is one in all of the file.
    `passes` are the options that a function's parameters are passed on to, and `opens` the configs
    that get whatever else it is called with.
    """

    def __init__(self, tree, *outer):
        self.configs, self.passes, self.opens, self.values = {}, {}, {}, {}
        for names in outer:
            merge(self.configs, {name: names.configs.get(name, set()) for name in names.public})
            merge(self.passes, names.passes)
            merge(self.opens, names.opens)
        nodes = list(ast.walk(tree))
        parts = [part for node in tree.body for part in (node, *getattr(node, "body", ()))]
        public = {getattr(part, "name", "") for part in parts}  # functions and methods
        public |= {name_of(target) for part in tree.body for target in getattr(part, "targets", ())}
        public |= {name_of(getattr(part, "target", None)) for part in tree.body}
        self.public = (public - {""}).union(*(names.public for names in outer))
        self.used = {name_of(node) for node in nodes} | {
            node.name for node in nodes if isinstance(node, ast.alias)
        }
        for _ in range(2):  # a name may be made of one that comes later
            for node in nodes:
                self.learn(node)

    def learn(self, node):
        """Take what an assignment, a loop, a parametrized test or a function says of a name."""
        match node:
            case ast.Assign(targets=[target], value=value):
                self.bind(target, value)
            case ast.AnnAssign(target=target, value=value) if value:
                self.bind(target, value)
            case ast.For(target=target, iter=items) | ast.comprehension(target=target, iter=items):
                self.bind_each(target, items)
            case ast.Call(func=ast.Attribute(attr="parametrize"), args=[names, items, *_]):
                words = ast.literal_eval(names)
                words = words.split(",") if isinstance(words, str) else words
                targets = [ast.Name(word.strip()) for word in words]
                self.bind_each(targets[0] if len(targets) == 1 else ast.Tuple(targets), items)
            case ast.FunctionDef(name=name):
                self.learn_function(name, node)
                self.learn_passing(name, node)
            case ast.ClassDef(name=name, body=body) if name not in CONFIGS:
                for part in body:
                    if getattr(part, "name", "") == "__init__":
                        self.learn_passing(name, part)

    def bind(self, target, value):
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for part, element in zip(target.elts, value.elts):
                self.bind(part, element)
        elif isinstance(target, ast.Name):
            merge(self.configs, {target.id: self.configs_of(value)})
            self.values.setdefault(target.id, {})[ast.unparse(value)] = value

    def bind_each(self, target, items):
        match items:
            case ast.Call(func=ast.Attribute(value=ast.Dict() as pairs, attr="items")):
                target, items = target.elts[1], ast.List(pairs.values)
            case ast.Call(func=ast.Attribute(value=value, attr="items")):
                target, items = target.elts[1], value
        for element in getattr(items, "elts", [items]):
            self.bind(target, element)

    def learn_function(self, name, node):
        """A function, or a fixture, stands for the config that it returns."""
        configs = set()
        if node.returns:
            configs = configs_in(node.returns)
        else:
            for part in ast.walk(node):
                if isinstance(part, ast.Return | ast.Yield) and part.value:
                    configs |= self.configs_of(part.value)
        merge(self.configs, {name: configs})
        for parameter in (*node.args.args, *node.args.kwonlyargs):
            if parameter.annotation:
                merge(self.configs, {parameter.arg: configs_in(parameter.annotation)})

    def learn_passing(self, name, node):
        """Which options get the arguments of a function, or of one that is made in it."""
        arguments = [part.args for part in ast.walk(node) if isinstance(part, ast.FunctionDef)]
        single = {a.arg for part in arguments for a in (*part.args, *part.kwonlyargs)}
        double = {part.kwarg.arg for part in arguments if part.kwarg}
        for call in ast.walk(node):
            if not isinstance(call, ast.Call):
                continue
            inner = name_of(call.func)
            for keyword in call.keywords:
                words = {name_of(part) for part in ast.walk(keyword.value)}
                if keyword.arg and name_of(keyword.value) in single:
                    places = self.places(call, keyword.arg)
                    merge(self.passes, {(name, name_of(keyword.value)): places})
                elif keyword.arg is None and words & double:
                    owners = self.configs_of(call) | self.opens.get(inner, set())
                    merge(self.opens, {name: owners})
            if inner in CHANGERS and any(name_of(part) in double for part in call.args[1:]):
                merge(self.opens, {name: self.configs_of(call)})

    def places(self, call, path):
        """The (class, field) that a keyword of a call sets, one or none or several."""
        name = name_of(call.func)
        owners = self.configs_of(call) | self.opens.get(name, set())
        ends = {resolve(owner, path) for owner in owners} - {None}
        return ends | self.passes.get((name, path), set())

    def configs_of(self, node):
        """The classes of config that an expression is, or holds as a dict or a sequence."""
        match node:
            case ast.Call(func=func) if name_of(func) in CONFIGS:
                return {name_of(func)}
            case ast.Call(func=func, args=[config, *_]) if name_of(func) in CHANGERS:
                return self.configs_of(config)
            case ast.Call(func=ast.Attribute(value=value, attr="values" | "get")):
                return self.configs_of(value)
            case ast.Call(func=func):
                return self.configs.get(name_of(func), set())
            case ast.Name(id=name):
                return self.configs.get(name, set())
            case ast.Subscript(value=value) | ast.Starred(value=value):
                return self.configs_of(value)
            case ast.Attribute(value=value, attr=name):
                owners = self.configs_of(value) or set(CONFIGS)
                fields = [CONFIGS[owner][name] for owner in owners if name in CONFIGS[owner]]
                inner = set().union(*(configs_in(annotation) for annotation, _ in fields))
                return inner or self.configs.get(name, set())
            case ast.Dict(values=parts) | ast.List(elts=parts) | ast.Tuple(elts=parts):
                return set().union(*map(self.configs_of, parts))
            case ast.IfExp(body=body, orelse=other):
                return self.configs_of(body) | self.configs_of(other)
        return set()


# What is varied -----------------------------------------------------------------------------------


def settings(tree, names):
    """(class, field, value) of every option that a file sets."""
    used = {name for name in names.used if name in CONFIGS}
    used |= set().union(*(names.configs.get(name, set()) for name in names.used))
    arguments = {}  # dicts whose class is known from the call that they are an argument of
    for node in ast.walk(tree):
        match node:
            case ast.Call(args=args, keywords=keywords):
                for keyword in keywords:
                    if keyword.arg:
                        for place in names.places(node, keyword.arg):
                            yield *place, keyword.value
                if owners := names.configs_of(node):
                    arguments |= dict.fromkeys([*args, *(word.value for word in keywords)], owners)
            case ast.Dict(keys=keys, values=values):
                paths = [getattr(key, "value", "") for key in keys if key]  # no **others
                values = [value for key, value in zip(keys, values) if key]
                owners = arguments.get(node, used if len(paths) < 3 else CONFIGS)
                yield from matches(paths, values, owners)
            case ast.Assign(targets=[ast.Subscript(slice=ast.Constant(value=path))], value=value):
                yield from matches([path], [value], used)


def matches(paths, values, owners):
    """(class, field, value) of each path, for the classes in which all of them lead somewhere."""
    if all(isinstance(path, str) for path in paths):
        for owner in owners:
            places = [resolve(owner, path) for path in paths]
            if all(places):
                yield from ((*place, value) for place, value in zip(places, values))


def is_varied(owner, field, value, names):
    """Whether a value is, or can be, one that the field may have and not its default."""
    annotation, default = CONFIGS[owner][field]
    match value:
        case ast.Name(id=name):
            values = names.values.get(name, {}).values()
            values = [value for value in values if not isinstance(value, ast.Name)]
            if not values:  # a parameter: of a fixture it is something, its own name is passed on
                return name != field
            return any(is_varied(owner, field, value, names) for value in values)
        case ast.Attribute(attr=name):
            return name != field
        case ast.IfExp(body=body, orelse=other):
            return any(is_varied(owner, field, value, names) for value in (body, other))
        case ast.Constant(value=constant) if not fits(constant, annotation):
            return False  # what a test of a message gives, or the key of another kind of dict
    return default is None or ast.unparse(value) != ast.unparse(default)


def fits(constant, annotation):
    """Whether an annotation allows a constant."""
    nodes = list(ast.walk(annotation))
    words = {name_of(node) for node in nodes}
    for name, alias in ALIASES:
        if name in words:
            nodes += ast.walk(alias)
    if any(isinstance(node, ast.Constant) and node.value == constant for node in nodes):
        return True
    kind = type(constant).__name__
    return kind in words or (kind == "int" and "float" in words)


@functools.cache
def library_names():
    names = Names(ast.Module([], []))
    for _ in range(2):  # a file may use one that comes later in the alphabet
        for tree in LIBRARY:
            names = Names(tree, names)
    return names


@functools.cache
def fixtures_of(folder):
    conftest = folder / "conftest.py"
    return [Names(parse(conftest), library_names())] if conftest.exists() else []


def varied_in(tree, folder=ROOT):
    """Every (class, field) that a file sets to another value than its default."""
    names = Names(tree, library_names(), *fixtures_of(folder))
    varied = set()
    for owner, field, value in settings(tree, names):
        if is_varied(owner, field, value, names):
            varied.add((owner, field))
    return varied


def test_every_option_is_read_somewhere():
    nodes = [node for tree in LIBRARY for node in ast.walk(tree)]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    read |= {node.value for node in nodes if isinstance(node, ast.Constant)}  # getattr(x, name)
    assert [f"{owner}.{field}" for owner, field in options() if field not in read] == []


def test_every_option_is_varied_by_a_preset_a_notebook_or_a_test():
    varied = set()
    for pattern in ("maetok_lab/**/*.py", "tests/**/*.py", "benchmarks/*.py", "notebooks/*.ipynb"):
        for path in ROOT.glob(pattern):
            if path != Path(__file__):
                varied |= varied_in(parse(path), path.parent)
    assert [f"{owner}.{field}" for owner, field in options() if (owner, field) not in varied] == []


@pytest.mark.parametrize(
    ("text", "varied"),
    [
        ("LossConfig(pixel='l1')", True),
        ("LossConfig(pixel='mse')", False),  # the default
        ("LossConfig(pixel='l3')", False),  # a test of a message
        ("def f(pixel): LossConfig(pixel=pixel)", False),
        ("def f(pixel): LossConfig(pixel=pixel)\nf(pixel='l1')", True),
        ("def f(**changes): override(LossConfig(), changes)\nf(pixel='l1')", True),
        ("for kind in ('mse', 'l1'): LossConfig(pixel=kind)", True),
        ("override(TOKENIZER_TRAINING['tiny'], {'losses.pixel': 'l1', **others})", True),
        ("replace(TOKENIZER_TRAINING['tiny'].losses, pixel='l1')", True),
        ("ladder_training('test', 'hog', losses__pixel='l1')", True),
        ("changes = {'losses__pixel': 'l1', 'seed': 1}\nTokenizerTraining", True),
        ("changes = {'losses__pixel': 'l1', 'colour': 1}\nTokenizerTraining", False),
        ("changes = {'pixel': 'l1'}\nDiffusionTraining", False),  # another class
        ("draw(pixel='l1')\nLossConfig", False),  # another function
    ],
)
def test_an_option_is_varied_where_its_class_gets_another_value(text, varied):
    assert (("LossConfig", "pixel") in varied_in(ast.parse(text))) == varied
