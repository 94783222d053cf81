// Colour scales: one ramp for magnitudes, one for signed values, each for light and dark; safe for the colour-blind.
import { signal } from "@preact/signals";

export type Theme = "light" | "dark";

const RAMPS: Record<Theme, { magnitude: string[]; signed: string[] }> = {
  light: {
    magnitude: ["#f1f4f6", "#d3e3ef", "#a2c8e2", "#66a5d0", "#2f7fb8", "#0e568f"],
    signed: ["#8f3a00", "#d55e00", "#f0b98a", "#f3f5f7", "#92c4e4", "#0072b2", "#00426b"],
  },
  dark: {
    magnitude: ["#20262c", "#1f3548", "#1f4d72", "#2470a8", "#3f95d6", "#79c0f7"],
    signed: ["#ffb27a", "#e8741c", "#7a431c", "#20262c", "#1f5478", "#3f9fdc", "#a3d8fa"],
  },
};

function channels(hex: string): [number, number, number] {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)) as [number, number, number];
}

/** Return 256 colours between the stops, three bytes each. */
export function ramp(stops: string[]): Uint8Array {
  const points = stops.map(channels);
  const colours = new Uint8Array(768);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (points.length - 1);
    const from = Math.min(points.length - 2, Math.floor(at));
    for (let c = 0; c < 3; c++) {
      const [a, b] = [points[from][c], points[from + 1][c]];
      colours[3 * i + c] = Math.round(a + (b - a) * (at - from));
    }
  }
  return colours;
}

const MADE = {
  light: { magnitude: ramp(RAMPS.light.magnitude), signed: ramp(RAMPS.light.signed) },
  dark: { magnitude: ramp(RAMPS.dark.magnitude), signed: ramp(RAMPS.dark.signed) },
};

function preferred(): Theme {
  try {
    const kept = localStorage.getItem("decision-traces theme");
    if (kept === "light" || kept === "dark") return kept;
  } catch {
    // Storage may be forbidden; the system's preference will do.
  }
  return typeof matchMedia !== "undefined" && matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

export const theme = signal<Theme>(preferred());

export function toggleTheme(): void {
  theme.value = theme.value === "light" ? "dark" : "light";
  try {
    localStorage.setItem("decision-traces theme", theme.value);
  } catch {
    // As above.
  }
}

export type Scale = (value: number) => number;

/** Place on the magnitude ramp, 0 to 255. */
export const SCALES: Record<string, (most: number) => Scale> = {
  prob: () => (v) => 255 * Math.sqrt(Math.min(1, Math.max(0, v))),
  rank: (most) => (v) => 255 * (1 - Math.min(1, Math.log(Math.max(1, v)) / Math.log(Math.max(2, most)))),
  entropy: (most) => (v) => 255 * Math.min(1, Math.max(0, v / most)),
  kl: (most) => (v) => 255 * Math.min(1, Math.sqrt(Math.max(0, v) / most)), // as a root: most of the way is small
};

export const signedScale = (most: number): Scale => (v) => 127.5 + 127.5 * Math.max(-1, Math.min(1, v / most));

export function colours(kind: "magnitude" | "signed", which: Theme = theme.value): Uint8Array {
  return MADE[which][kind];
}

export function css(table: Uint8Array, at: number): string {
  const i = 3 * Math.max(0, Math.min(255, Math.round(at)));
  return `rgb(${table[i]},${table[i + 1]},${table[i + 2]})`;
}

/** Black or white, whichever reads better on a colour of the table (relative luminance, WCAG). */
export function inkOn(table: Uint8Array, at: number): string {
  const i = 3 * Math.max(0, Math.min(255, Math.round(at)));
  const linear = [0, 1, 2].map((c) => {
    const v = table[i + c] / 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  });
  const luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  return luminance > 0.179 ? "#000000" : "#ffffff";
}
