// How numbers, tokens and layers are written.

const minus = (text: string): string => text.replaceAll("-", "−");

/** A probability: two figures that matter, never more than four places. */
export function prob(value: number | null | undefined): string {
  if (value == null || !Number.isFinite(value)) return "–";
  if (value >= 0.995) return value >= 0.9995 ? "1.00" : value.toFixed(3);
  if (value >= 0.01) return value.toFixed(2);
  if (value >= 0.0001) return value.toFixed(4);
  return value === 0 ? "0" : minus(value.toExponential(0));
}

/** A difference of probabilities. */
export function signedProb(value: number | null): string {
  if (value === null) return "–";
  return Math.abs(value) < 0.00005 ? "0" : `${value < 0 ? "−" : "+"}${prob(Math.abs(value))}`;
}

/** A signed number of logits; small ones keep one figure that matters. */
export function signed(value: number | null | undefined, digits = 2): string {
  if (value == null || !Number.isFinite(value)) return "–";
  if (value !== 0 && digits > 1 && Math.abs(value) < 0.005) {
    return (value < 0 ? "−" : "+") + minus(Math.abs(value).toPrecision(1));
  }
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? (0).toFixed(digits) : value < 0 ? `−${text}` : `+${text}`;
}

/** A number; small ones keep as many figures that matter as large ones have places. */
export function number(value: number | null | undefined, digits = 2): string {
  if (value == null || !Number.isFinite(value)) return "–";
  if (Number.isInteger(value) || Math.abs(value) >= 1000) return minus(Math.round(value).toLocaleString("en"));
  return minus(digits > 0 && Math.abs(value) < 0.1 ? value.toPrecision(digits) : value.toFixed(digits));
}

/** A token with its spaces visible. */
export function word(text: string | null | undefined): string {
  if (text == null) return "–";
  if (text === "") return "∅";
  return text.replace(/ /g, "\u2423").replace(/\n/g, "⏎").replace(/\t/g, "⇥");
}

/** A token for a narrow cell: the leading space is left out, what is left is never empty. */
export function brief(text: string): string {
  const bare = text.replace(/^ /, "").replace(/\n/g, "⏎").replace(/\t/g, "⇥");
  return bare === "" ? "\u2423" : bare;
}

/** What a depth of the lens is called: 0 is the embedding, d what comes out of layer d − 1. */
export function depth(d: number): string {
  return d === 0 ? "embedding" : `layer ${d - 1}`;
}

/** The layer that a part such as "attn 3" belongs to; null for the embedding and the remainder. */
export function layerOf(part: string): number | null {
  const found = /^(?:attn|mlp) (\d+)$/.exec(part);
  return found ? Number(found[1]) : null;
}

export function plural(n: number, one: string, many = `${one}s`): string {
  return `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
}
