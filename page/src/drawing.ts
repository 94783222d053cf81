// How a grid is drawn on its canvas: only what is in view, and of tiny cells one picture, made once.
import { css, inkOn } from "./colour";

export interface Cell {
  row: number;
  col: number;
}

export interface Drawing {
  rows: number;
  cols: number;
  cellWidth: number;
  cellHeight: number;
  /** Place on the colour table, 0 to 255; NaN is hatched: nothing was kept there. */
  at: (row: number, col: number) => number;
  table: Uint8Array;
  text?: (row: number, col: number) => string;
  rowLabel?: (row: number) => string;
  colLabel?: (col: number) => string;
  rowLabelWidth?: number;
  colLabelHeight?: number;
  colLabelsBelow?: boolean;
  slanted?: boolean;
  selected: Cell | null;
  markRow?: number | null;
  markCol?: number | null;
  padding?: number;
}

export interface Area {
  left: number;
  top: number;
  head: number;
  view: number;
  height: number;
  scroll: number;
  padWidth: number;
}

interface Ink {
  ink: string;
  muted: string;
  panel: string;
}

const MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace";
const TINY = 6; // cells smaller than this have no gaps and no text: they are the pixels of a picture
const UNKNOWN = 60; // place on the table of what is hatched

/** Draw a grid; `version` is what its cells depend on, for the picture of tiny ones. */
export function draw(element: HTMLCanvasElement, p: Drawing, a: Area, version: unknown[]): void {
  const ratio = devicePixelRatio || 1;
  element.width = Math.round(a.view * ratio);
  element.height = Math.round(a.height * ratio);
  const context = element.getContext("2d");
  if (!context) return;
  const style = getComputedStyle(element);
  const colour = (name: string) => style.getPropertyValue(name).trim();
  const ink: Ink = { ink: colour("--ink"), muted: colour("--muted"), panel: colour("--panel") };
  context.scale(ratio, ratio);
  context.clearRect(0, 0, a.view, a.height);
  context.save();
  context.beginPath();
  context.rect(a.left, 0, a.view - a.left, a.height);
  context.clip();
  if (p.cellWidth < TINY || p.cellHeight < TINY) tiny(context, p, a, picture(element, p, version));
  else cells(context, p, a);
  if (p.padding) {
    const x = a.left + p.cols * p.cellWidth - a.scroll + 2;
    hatch(context, x, a.top, a.padWidth - 2, p.rows * p.cellHeight, ink.muted);
  }
  marks(context, p, a, ink.ink);
  columnLabels(context, p, a, ink);
  context.restore();
  rowLabels(context, p, a, ink);
}

function inView(p: Drawing, a: Area): [number, number] {
  const first = Math.max(0, Math.floor(a.scroll / p.cellWidth));
  return [first, Math.min(p.cols, Math.ceil((a.scroll + a.view - a.left) / p.cellWidth))];
}

interface Picture {
  canvas: HTMLCanvasElement;
  /** Whether cells are left out, for a hatch to show through. */
  holes: boolean;
  of: unknown[];
}

const pictures = new WeakMap<HTMLCanvasElement, Picture>();

/** Return a picture of the cells, a pixel each; made again only when they change. */
function picture(element: HTMLCanvasElement, p: Drawing, version: unknown[]): Picture {
  const of = [...version, p.table, p.rows, p.cols];
  const made = pictures.get(element);
  if (made && made.of.length === of.length && made.of.every((v, i) => Object.is(v, of[i]))) return made;
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, p.cols);
  canvas.height = Math.max(1, p.rows);
  const image = new ImageData(canvas.width, canvas.height);
  const holes = paint(image.data, p);
  canvas.getContext("2d")?.putImageData(image, 0, 0);
  const found = { canvas, holes, of };
  pictures.set(element, found);
  return found;
}

/** Write the cells' colours into pixels, four bytes each; return whether some have no value and stay clear. */
export function paint(pixels: Uint8ClampedArray, p: Pick<Drawing, "rows" | "cols" | "at" | "table">): boolean {
  let holes = false;
  for (let row = 0; row < p.rows; row++) {
    for (let col = 0; col < p.cols; col++) {
      const at = p.at(row, col);
      if (Number.isNaN(at)) {
        holes = true;
        continue;
      }
      const from = 3 * Math.max(0, Math.min(255, Math.round(at)));
      const to = 4 * (row * p.cols + col);
      pixels[to] = p.table[from];
      pixels[to + 1] = p.table[from + 1];
      pixels[to + 2] = p.table[from + 2];
      pixels[to + 3] = 255;
    }
  }
  return holes;
}

function tiny(context: CanvasRenderingContext2D, p: Drawing, a: Area, found: Picture): void {
  const [x, width, height] = [a.left - a.scroll, p.cols * p.cellWidth, p.rows * p.cellHeight];
  if (found.holes) hatch(context, x, a.top, width, height, css(p.table, UNKNOWN));
  context.imageSmoothingEnabled = false;
  context.drawImage(found.canvas, x, a.top, width, height);
}

function cells(context: CanvasRenderingContext2D, p: Drawing, a: Area): void {
  const [first, last] = inView(p, a);
  context.textBaseline = "middle";
  context.font = `${Math.min(11, p.cellHeight - 6)}px ${MONO}`;
  for (let row = 0; row < p.rows; row++) {
    for (let col = first; col < last; col++) {
      const at = p.at(row, col);
      const x = a.left + col * p.cellWidth - a.scroll;
      const y = a.top + row * p.cellHeight;
      if (Number.isNaN(at)) {
        hatch(context, x, y, p.cellWidth - 1, p.cellHeight - 1, css(p.table, UNKNOWN));
        continue;
      }
      context.fillStyle = css(p.table, at);
      context.fillRect(x, y, p.cellWidth - 1, p.cellHeight - 1);
      if (p.text && p.cellWidth >= 26) {
        context.fillStyle = inkOn(p.table, at);
        context.fillText(cut(context, p.text(row, col), p.cellWidth - 6), x + 3, y + p.cellHeight / 2);
      }
    }
  }
}

/** Cut a text to the room there is; fonts differ, so it is measured. */
function cut(context: CanvasRenderingContext2D, text: string, room: number): string {
  if (room <= 0) return "";
  let width = context.measureText(text).width;
  if (width <= room) return text;
  let n = Math.max(1, Math.floor((text.length * room) / width) - 1);
  for (; n > 1; n--) {
    width = context.measureText(text.slice(0, n) + "…").width;
    if (width <= room) break;
  }
  return n <= 1 ? text.slice(0, 1) : text.slice(0, n) + "…";
}

type Box = [x: number, y: number, width: number, height: number];

function hatch(context: CanvasRenderingContext2D, ...[x, y, width, height, colour]: [...Box, string]): void {
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.beginPath();
  for (let at = x - height; at < x + width; at += 5) {
    context.moveTo(at, y + height);
    context.lineTo(at + height, y);
  }
  context.stroke();
  context.restore();
}

function marks(context: CanvasRenderingContext2D, p: Drawing, a: Area, ink: string): void {
  const inset = p.cellWidth >= TINY ? 1 : 0;
  const box = (row: number, col: number, rows: number, cols: number, weight: number) => {
    context.strokeStyle = ink;
    context.lineWidth = weight;
    context.strokeRect(
      a.left + col * p.cellWidth - a.scroll - 0.5,
      a.top + row * p.cellHeight - 0.5,
      cols * p.cellWidth - inset + 1,
      rows * p.cellHeight - inset + 1,
    );
  };
  if (p.markRow != null && p.markRow >= 0) box(p.markRow, 0, 1, p.cols, 1);
  if (p.markCol != null && p.markCol >= 0) box(0, p.markCol, p.rows, 1, 1);
  if (p.selected) box(p.selected.row, p.selected.col, 1, 1, 2.5);
}

function columnLabels(context: CanvasRenderingContext2D, p: Drawing, a: Area, ink: Ink): void {
  if (!p.colLabel || !a.head) return;
  const [first, last] = inView(p, a);
  const every = Math.max(1, Math.ceil((p.slanted ? 11 : 24) / p.cellWidth));
  context.font = `11px ${MONO}`;
  context.textAlign = "left";
  context.textBaseline = "middle";
  for (let col = first; col < last; col++) {
    const chosen = col === p.selected?.col || col === p.markCol;
    if (!chosen && col % every !== 0) continue;
    const x = a.left + col * p.cellWidth - a.scroll;
    context.fillStyle = chosen ? ink.ink : ink.muted;
    if (!p.slanted) {
      context.fillText(cut(context, p.colLabel(col), p.cellWidth * every - 6), x + 3, a.head / 2);
      continue;
    }
    context.save();
    context.translate(x + p.cellWidth / 2, p.colLabelsBelow ? p.rows * p.cellHeight + 5 : a.top - 4);
    context.rotate(p.colLabelsBelow ? Math.PI / 2 : -Math.PI / 2);
    context.fillText(cut(context, p.colLabel(col), a.head - 8), 0, 0);
    context.restore();
  }
}

function rowLabels(context: CanvasRenderingContext2D, p: Drawing, a: Area, ink: Ink): void {
  if (!p.rowLabel || !a.left) return;
  context.fillStyle = ink.panel;
  context.fillRect(0, 0, a.left - 2, a.height);
  context.textBaseline = "middle";
  context.textAlign = "right";
  context.font = "11px system-ui, sans-serif";
  const every = Math.max(1, Math.ceil(12 / p.cellHeight));
  for (let row = 0; row < p.rows; row++) {
    const chosen = row === p.selected?.row || row === p.markRow;
    if (!chosen && row % every !== 0) continue;
    context.fillStyle = chosen ? ink.ink : ink.muted;
    const y = a.top + row * p.cellHeight + p.cellHeight / 2;
    context.fillText(cut(context, p.rowLabel(row), a.left - 8), a.left - 7, y);
  }
  context.textAlign = "left";
}
