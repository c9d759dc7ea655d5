// Light, dark, or as the system is.

import { $, kept } from "./dom.js";

const LOOKS = { "": ["◐", "as the system"], light: ["☀", "light"], dark: ["☾", "dark"] };

export function makeTheme() {
  let look = kept.get("theme") ?? "";
  const apply = () => {
    const [sign, words] = LOOKS[look] || LOOKS[""];
    document.documentElement.dataset.theme = look;
    $("theme").textContent = sign;
    $("theme").setAttribute("aria-label", `Colours: ${words}`);
    $("theme").title = `Colours: ${words}`;
  };
  $("theme").addEventListener("click", () => {
    const names = Object.keys(LOOKS);
    look = names[(names.indexOf(look) + 1) % names.length];
    kept.set("theme", look);
    apply();
  });
  apply();
}
