// One file from the reader's disk. A file over the limit never leaves the browser: servers cut connections that send one.
function render({ model, el }) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  label.textContent = model.get("label") + " ";
  input.type = "file";
  input.accept = "image/*";
  label.append(input);
  el.append(label);
  input.addEventListener("change", async () => {
    const file = input.files[0];
    if (!file) return;
    const fits = file.size <= model.get("limit");
    const bytes = fits ? await file.arrayBuffer() : new ArrayBuffer(0);
    model.set({ name: file.name, length: file.size, content: new DataView(bytes), serial: model.get("serial") + 1 });
    model.save_changes();
    input.value = "";
  });
}
const page = { render };
export default page;
