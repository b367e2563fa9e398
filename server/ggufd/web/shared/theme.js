// Dark or light: the system's, until a person chooses.
import { effect, signal } from "./view.js";

const NAME = "ggufd.theme";

/** @type {import("../vendor/preact.js").Signal<"" | "dark" | "light">} */
export const theme = signal(/** @type {any} */ (read()));

function read() {
  const kept = localStorage.getItem(NAME);
  return kept === "dark" || kept === "light" ? kept : "";
}

effect(() => {
  if (theme.value) document.documentElement.dataset.theme = theme.value;
  else delete document.documentElement.dataset.theme;
  localStorage.setItem(NAME, theme.value);
});

/** Whether the page is dark now. */
export function isDark() {
  return theme.value ? theme.value === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/** To the other one. */
export function toggleTheme() {
  theme.value = isDark() ? "light" : "dark";
}
