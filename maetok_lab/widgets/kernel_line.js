// What the kernel of the studio below cannot do at the moment; empty while it answers.
function kernelNote({ model, el }) {
  el.classList.add("maetok", "maetok-live", "maetok-note");
  el.replaceChildren(kernelLine(model, el));
  return ending(el);
}

const page = { render: kernelNote };
export default page;
