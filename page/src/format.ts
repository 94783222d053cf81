// How numbers, tokens and layers are written.

/** A probability: two figures that matter, never more than four places. */
export function prob(value: number | null | undefined): string {
  if (value == null || !Number.isFinite(value)) return "–";
  if (value >= 0.995) return value >= 0.9995 ? "1.00" : value.toFixed(3);
  if (value >= 0.01) return value.toFixed(2);
  if (value >= 0.0001) return value.toFixed(4);
  return value === 0 ? "0" : value.toExponential(0).replace("e-", "e−");
}

/** A signed number of logits; small ones keep one figure that matters. */
export function signed(value: number | null | undefined, digits = 2): string {
  if (value == null || !Number.isFinite(value)) return "–";
  if (value !== 0 && digits > 1 && Math.abs(value) < 0.005) return (value < 0 ? "−" : "+") + Math.abs(value).toPrecision(1).replace("e-", "e−");
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? (0).toFixed(digits) : value < 0 ? `−${text}` : `+${text}`;
}

export function number(value: number | null | undefined, digits = 2): string {
  if (value == null || !Number.isFinite(value)) return "–";
  if (Number.isInteger(value) || Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en").replace("-", "−");
  return value.toFixed(digits).replace("-", "−");
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

export function plural(n: number, one: string, many = `${one}s`): string {
  return `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
}
