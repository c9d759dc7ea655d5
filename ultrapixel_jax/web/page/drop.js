// A picture that is dropped on the page, or chosen, shows its settings.

import * as api from "./api.js";
import { $, tell } from "./dom.js";

export function makeDrop(most, use) {
  async function take(file) {
    if (!file) return;
    tell(`Reading ${file.name}…`);
    try {
      const { asked, missing } = await api.settingsOf(file, most);
      use(asked);
      tell(missing.length ? `The settings of ${file.name}, without ${missing.join(" and ")}: not here.` : `The settings of ${file.name}.`);
    } catch (error) {
      tell(error.message);
    }
  }

  const files = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    $("drop").hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) $("drop").hidden = true;
  });
  addEventListener("drop", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    $("drop").hidden = true;
    take(event.dataTransfer.files[0]);
  });
  $("open").addEventListener("change", () => {
    take($("open").files[0]);
    $("open").value = "";
  });
}
