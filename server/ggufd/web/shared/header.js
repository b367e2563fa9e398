// The line across the top of both pages: which model, and the way to the other page.
import { Connect } from "./connect.js";
import { Icon } from "./icons.js";
import { IconButton } from "./components.js";
import { facts } from "./server.js";
import { isDark, theme, toggleTheme } from "./theme.js";
import { html, useSignal } from "./view.js";

/**
 * `before` and `after` are a page's own buttons at the ends of the line, `choice` what stands in place of the model.
 * @param {{page: "chat" | "live", before?: any, after?: any, choice?: any}} props
 */
export function Header({ page, before, after, choice }) {
  const connecting = useSignal(false);
  const model = facts.value?.model;
  return html`<header class="header">
    ${before}
    <div class="brand"><strong>ggufd</strong>${choice ||
    (model && html`<span class="cut" title=${model}>${model}</span>`)}</div>
    <nav class="nav" aria-label="Pages">
      <${NavLink} href="./" icon="talk" name="Chat" isHere=${page === "chat"} />
      <${NavLink} href="live" icon="pulse" name="Live" isHere=${page === "live"} />
      <button type="button" class="nav-link" aria-haspopup="dialog" aria-label="Connect" title="Connect"
        onClick=${() => (connecting.value = true)}><${Icon} name="plug" /><span>Connect</span></button>
    </nav>
    <${ThemeButton} />
    ${after}
    ${connecting.value && html`<${Connect} onClose=${() => (connecting.value = false)} />`}
  </header>`;
}

/** @param {{href: string, icon: string, name: string, isHere: boolean}} props */
function NavLink({ href, icon, name, isHere }) {
  return html`<a class="nav-link" href=${href} aria-label=${name} title=${name}
    aria-current=${isHere ? "page" : undefined}><${Icon} name=${icon} /><span>${name}</span></a>`;
}

function ThemeButton() {
  const dark = theme.value ? theme.value === "dark" : isDark();
  return html`<${IconButton} icon=${dark ? "sun" : "moon"} name=${dark ? "Light colours" : "Dark colours"}
    onClick=${toggleTheme} />`;
}
