// A table with named columns; on a narrow page each row becomes a card. Roles are said, since styles would take them.
import { html } from "../shared/view.js";

/**
 * One column. `kind` is "number" for what stands to the right, "wide" for what gets a line of its own on a card, "act"
 * for buttons.
 * @typedef {{name: string, cell: (row: any) => any, kind?: string}} Column
 */

/**
 * @param {{caption: string, columns: Column[], rows: any[], keyOf: (row: any) => string | number, empty: string}} props
 */
export function Table({ caption, columns, rows, keyOf, empty }) {
  if (!rows.length) return html`<p class="nothing">${empty}</p>`;
  return html`<table class="table" role="table" aria-label=${caption}>
    <thead role="rowgroup"><tr role="row">
      ${columns.map(
        ({ name, kind = "" }) => html`<th scope="col" role="columnheader" class=${kind}>
        <span class=${kind === "act" ? "unseen" : ""}>${name}</span></th>`,
      )}
    </tr></thead>
    <tbody role="rowgroup">
      ${rows.map(
        (row) => html`<tr role="row" key=${keyOf(row)}>
          ${columns.map(
            ({ name, cell, kind = "" }, at) =>
              html`<${at ? "td" : "th"} role=${at ? "cell" : "rowheader"} scope=${at ? undefined : "row"} class=${kind}
                data-name=${name}>${cell(row)}<//>`,
          )}
        </tr>`,
      )}
    </tbody>
  </table>`;
}

/**
 * A part of the page with its heading. `note` stands beside it, `failure` below it where something went wrong.
 * @param {{title: string, note?: any, failure?: string, kind?: string, children?: any}} props
 */
export function Section({ title, note, failure, kind = "", children }) {
  return html`<section class="card ${kind}" aria-label=${title}>
    <header class="card-head"><h2>${title}</h2>${note && html`<span class="quiet">${note}</span>`}</header>
    ${failure && html`<p class="failure" role="alert">${failure}</p>`}
    ${children}
  </section>`;
}

/** Whose something is. @param {{name: string | null, you: string | null}} props */
export function Owner({ name, you }) {
  if (name === null) return html`<span class="quiet">everybody</span>`;
  return html`<span class="owner" title=${name}><span class="cut">${name}</span>${
    name === you && html`<span class="tag">you</span>`
  }</span>`;
}
