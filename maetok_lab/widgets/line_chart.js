// A chart that follows its spec.
function lineChart({ model, el }) {
  el.classList.add("maetok", "maetok-live");
  const draw = () => drawChart(el, model.get("spec"));
  model.on("change:spec", draw);
  draw();
  hearUpdates(model, el);
  return ending(el);
}

const page = { render: lineChart };
export default page;
