// The chat page: chats at the left, the conversation, settings at the right.
import { KeyDialog, ServerBanner } from "../shared/frame.js";
import { Header } from "../shared/header.js";
import { html } from "../shared/view.js";

export function App() {
  return html`<div class="chat-page">
    <${Header} page="chat" />
    <${ServerBanner} />
    <main></main>
    <${KeyDialog} />
  </div>`;
}
