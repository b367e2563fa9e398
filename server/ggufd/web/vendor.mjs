// The vendored libraries, written from what npm installed: `node vendor.mjs NODE_MODULES TARGET`.
//
// Each becomes one minified ES module without imports; what preact, htm and the signals share is one module, so that
// there is one preact. Beside each lie its types, for the check by tsc, and the licences.
import { copyFile, mkdir, readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";

const [modules, target] = process.argv.slice(2).map((folder) => path.resolve(folder));
const esbuild = createRequire(path.join(modules, "x.js"))("esbuild");

const LANGUAGES = "c cpp csharp css diff go html java json php python ruby rust shell sql toml yaml".split(" ");

/** What each module exports, in the words of the packages. */
const ENTRIES = {
  preact: `
export { Component, Fragment, h, render } from "preact";
export { useCallback, useEffect, useId, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
export { batch, computed, effect, signal, untracked, useComputed, useSignal, useSignalEffect } from "@preact/signals";
export { default as htm } from "htm";
`,
  marked: `export { Marked } from "marked";\n`,
  dompurify: `export { default } from "dompurify";\n`,
  uplot: `export { default } from "uplot";\n`,
  "sugar-high": `
import { tokenize } from "sugar-high/core";
import * as javascript from "sugar-high/lang/javascript";
import * as typescript from "sugar-high/lang/typescript";
${LANGUAGES.map((name) => `import * as ${name} from "sugar-high/lang/${name}";`).join("\n")}
export { tokenize };
export const languages = { javascript, typescript, ${LANGUAGES.join(", ")} };
`,
};

/** Types beside those of the exports, or in their place where a module is more than one package. */
const MORE_TYPES = {
  preact: `export type { ReadonlySignal, Signal } from "@preact/signals";\n`,
};
const TYPES = {
  "sugar-high": `
export function tokenize(code: string, options: unknown): Array<[number, string]>;
export const languages: Record<string, object>;
`,
};

const LICENCES = ["@preact/signals", "dompurify", "htm", "marked", "preact", "sugar-high", "uplot"];

async function bundle(name) {
  const { outputFiles } = await esbuild.build({
    stdin: { contents: ENTRIES[name], resolveDir: path.dirname(modules) },
    nodePaths: [modules],
    bundle: true,
    minify: true,
    write: false,
    format: "esm",
    target: "es2022",
    charset: "utf8",
    legalComments: "none",
  });
  await writeFile(path.join(target, `${name}.js`), outputFiles[0].contents);
  await writeFile(path.join(target, `${name}.d.ts`), types(name));
}

function types(name) {
  return (TYPES[name] ?? ENTRIES[name] + (MORE_TYPES[name] ?? "")).trimStart();
}

async function licence(name) {
  const folder = path.join(modules, name);
  const { version, license } = JSON.parse(await readFile(path.join(folder, "package.json"), "utf8"));
  const text = await readFile(path.join(folder, "LICENSE"), "utf8").catch(() => "");
  return `${name} ${version} (${license})\n\n${text.trim()}`.trim();
}

await mkdir(target, { recursive: true });
for (const name of Object.keys(ENTRIES)) await bundle(name);
await copyFile(path.join(modules, "uplot/dist/uPlot.min.css"), path.join(target, "uplot.css"));
const rule = `\n\n${"-".repeat(80)}\n\n`;
await writeFile(path.join(target, "LICENCES.txt"), (await Promise.all(LICENCES.map(licence))).join(rule) + "\n");
