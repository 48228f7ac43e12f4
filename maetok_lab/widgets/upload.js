// One file from the reader's disk.
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
    model.set({ ...(await sendable(file, model.get("limit"))), serial: model.get("serial") + 1 });
    model.save_changes();
    input.value = "";
  });
}
const page = { render };
export default page;
