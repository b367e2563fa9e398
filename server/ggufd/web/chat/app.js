// The chat page: chats at the left, the conversation, settings at the right.
import { IconButton } from "../shared/components.js";
import { KeyDialog, ServerBanner } from "../shared/frame.js";
import { Header } from "../shared/header.js";
import { effect, html, useSignal } from "../shared/view.js";
import { watchSight } from "./attachments.js";
import { readAgain, takeUpAll } from "./conversation.js";
import { ConversationView } from "./conversation_view.js";
import { onChangeElsewhere, openChatId, readLibrary } from "./library.js";
import { ModelChoice, several } from "./model.js";
import { isChanged } from "./settings.js";
import { SettingsPanel } from "./settings_panel.js";
import { openChat, prepareFiles, Sidebar, SidebarButton } from "./sidebar.js";

export function App() {
  const showsSettings = useSignal(false);
  const close = () => (showsSettings.value = false);
  return html`<div class="chat-page">
    <${Header} page="chat" choice=${several.value && html`<${ModelChoice} />`} before=${html`<${SidebarButton} />`} after=${html`<${IconButton} icon="sliders"
      name="Settings" kind=${isChanged.value ? "marked" : ""} expanded=${showsSettings.value}
      onClick=${() => (showsSettings.value = !showsSettings.value)} />`} />
    <${ServerBanner} />
    <div class="chat-body">
      <${Sidebar} />
      <${ConversationView} />
      ${showsSettings.value &&
      html`<aside class="settings" aria-label="Settings">
        <div class="settings-head"><h2>Settings</h2><${IconButton} icon="close" name="Close settings"
          onClick=${close} /></div>
        <${SettingsPanel} />
      </aside>`}
    </div>
    <${KeyDialog} />
  </div>`;
}

/** Open the chat that the address names, and keep the address up to date. */
export async function openFromAddress() {
  watchSight();
  await readLibrary();
  if (openChatId.value) await openChat(openChatId.value);
  takeUpAll();
  prepareFiles();
  onChangeElsewhere(readAgain);
  addEventListener("hashchange", () => openChat(location.hash.slice(1)));
  effect(() => {
    const wanted = openChatId.value ? `#${openChatId.value}` : location.pathname + location.search;
    if (location.hash.slice(1) !== openChatId.value) history.pushState(null, "", wanted);
  });
}
