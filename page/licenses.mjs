// Collects the licences of everything that is built into the page; what is shipped ships with them.
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const root = JSON.parse(readFileSync("package.json", "utf8"));
const found = new Map();

function visit(name) {
  if (found.has(name)) return;
  const folder = join("node_modules", name);
  const about = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const file = readdirSync(folder).find((f) => /^licen[cs]e/i.test(f));
  const text = file ? readFileSync(join(folder, file), "utf8").trim() : `${about.license}`;
  found.set(name, `${name} ${about.version} (${about.license})\n\n${text}\n`);
  Object.keys(about.dependencies ?? {}).forEach(visit);
}

Object.keys(root.dependencies).forEach(visit);
const texts = [...found.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, text]) => text);
mkdirSync("public", { recursive: true });
writeFileSync("public/licenses.txt", texts.join(`\n${"-".repeat(80)}\n\n`));
