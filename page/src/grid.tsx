// A grid of coloured cells on a canvas: lens and attention. Only what is in view is drawn.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { css, inkOn, theme } from "./colour";
import { useWidth } from "./width";

export interface Cell {
  row: number;
  col: number;
}

interface Props {
  label: string;
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
  version: unknown;
  say: (cell: Cell) => string;
  onPick: (cell: Cell) => void;
  onHover?: (cell: Cell | null, x: number, y: number) => void;
}

const PAD_WIDTH = 26;

export function Grid(p: Props) {
  const [box, width] = useWidth<HTMLDivElement>();
  const canvas = useRef<HTMLCanvasElement>(null);
  const [scroll, setScroll] = useState(0);
  const [hover, setHover] = useState<Cell | null>(null);
  const [cursor, setCursor] = useState<Cell | null>(null);
  const left = p.rowLabelWidth ?? 0;
  const head = p.colLabelHeight ?? 0;
  const top = p.colLabelsBelow ? 0 : head;
  const padWidth = p.padding ? PAD_WIDTH : 0;
  const full = p.cols * p.cellWidth + padWidth;
  const height = p.rows * p.cellHeight + head;
  const view = Math.max(0, Math.min(width, left + full));

  const column = p.selected?.col ?? p.markCol ?? undefined;
  useLayoutEffect(() => {
    const element = box.current;
    if (!element || column === undefined || column < 0 || width === 0) return;
    const x = column * p.cellWidth;
    const room = width - left;
    if (x < element.scrollLeft || x + p.cellWidth > element.scrollLeft + room) {
      element.scrollLeft = Math.max(0, x - room * 0.6);
      setScroll(element.scrollLeft);
    }
  }, [column, p.cellWidth, width, p.cols]);

  useEffect(() => {
    const element = canvas.current;
    if (!element || view === 0) return;
    const frame = requestAnimationFrame(() => draw(element, p, { left, top, head, view, height, scroll, cursor: hover ?? cursor }));
    return () => cancelAnimationFrame(frame);
  }, [p.version, p.selected?.row, p.selected?.col, p.markRow, p.markCol, hover, cursor, scroll, view, height, theme.value, p.cellWidth, p.cellHeight]);

  const find = (event: PointerEvent): Cell | null => {
    const bounds = (event.currentTarget as HTMLElement).getBoundingClientRect();
    const x = event.clientX - bounds.left - left;
    const y = event.clientY - bounds.top - top;
    const col = Math.floor((x + scroll) / p.cellWidth);
    const row = Math.floor(y / p.cellHeight);
    return x >= 0 && y >= 0 && row < p.rows && col < p.cols ? { row, col } : null;
  };
  const move = (event: PointerEvent) => {
    const cell = find(event);
    if (cell?.row !== hover?.row || cell?.col !== hover?.col) setHover(cell);
    p.onHover?.(cell, event.clientX, event.clientY);
  };
  const key = (event: KeyboardEvent) => {
    const steps: Record<string, [number, number]> = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const step = steps[event.key];
    const now = cursor ?? p.selected ?? { row: 0, col: 0 };
    if (step) {
      event.preventDefault();
      event.stopPropagation();
      setCursor({ row: clamp(now.row + step[0], p.rows), col: clamp(now.col + step[1], p.cols) });
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      p.onPick(now);
    } else if (event.key === "Escape") setCursor(null);
  };
  const told = hover ?? cursor ?? p.selected;
  return (
    <div class="grid">
      <div class="grid-scroll" ref={box} onScroll={() => setScroll(box.current?.scrollLeft ?? 0)}>
        <div style={{ width: `${left + full}px`, height: `${height}px` }}>
          <canvas
            ref={canvas}
            tabIndex={0}
            role="application"
            aria-roledescription="grid of values"
            aria-label={`${p.label}: ${p.rows} by ${p.cols} cells. Arrow keys move, Enter chooses.`}
            style={{ width: `${view}px`, height: `${height}px` }}
            onPointerMove={move}
            onPointerLeave={() => {
              setHover(null);
              p.onHover?.(null, 0, 0);
            }}
            onPointerDown={(event) => {
              const cell = find(event);
              if (cell) p.onPick(cell);
            }}
            onKeyDown={key}
            onBlur={() => setCursor(null)}
          />
        </div>
      </div>
      <p class="live" aria-live="polite">
        {told ? p.say(told) : "\u00a0"}
      </p>
    </div>
  );
}

function clamp(value: number, size: number): number {
  return Math.max(0, Math.min(size - 1, value));
}

interface Area {
  left: number;
  top: number;
  head: number;
  view: number;
  height: number;
  scroll: number;
  cursor: Cell | null;
}

function draw(element: HTMLCanvasElement, p: Props, a: Area): void {
  const ratio = devicePixelRatio || 1;
  element.width = Math.round(a.view * ratio);
  element.height = Math.round(a.height * ratio);
  const context = element.getContext("2d");
  if (!context) return;
  const style = getComputedStyle(element);
  const ink = style.getPropertyValue("--ink").trim();
  const muted = style.getPropertyValue("--muted").trim();
  const panel = style.getPropertyValue("--panel").trim();
  context.scale(ratio, ratio);
  context.clearRect(0, 0, a.view, a.height);
  const first = Math.max(0, Math.floor(a.scroll / p.cellWidth));
  const last = Math.min(p.cols, Math.ceil((a.scroll + a.view - a.left) / p.cellWidth));
  context.save();
  context.beginPath();
  context.rect(a.left, 0, a.view - a.left, a.height);
  context.clip();
  cells(context, p, a, first, last);
  padding(context, p, a, muted);
  marks(context, p, a, ink);
  columnLabels(context, p, a, first, last, ink, muted);
  context.restore();
  rowLabels(context, p, a, ink, muted, panel);
}

function cells(context: CanvasRenderingContext2D, p: Props, a: Area, first: number, last: number): void {
  const gap = p.cellWidth >= 6 && p.cellHeight >= 6 ? 1 : 0;
  context.textBaseline = "middle";
  context.font = `${Math.min(11, p.cellHeight - 6)}px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace`;
  for (let row = 0; row < p.rows; row++) {
    for (let col = first; col < last; col++) {
      const at = p.at(row, col);
      const x = a.left + col * p.cellWidth - a.scroll;
      const y = a.top + row * p.cellHeight;
      if (Number.isNaN(at)) {
        hatch(context, x, y, p.cellWidth - gap, p.cellHeight - gap, css(p.table, 60));
        continue;
      }
      context.fillStyle = css(p.table, at);
      context.fillRect(x, y, p.cellWidth - gap, p.cellHeight - gap);
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

function hatch(context: CanvasRenderingContext2D, x: number, y: number, width: number, height: number, colour: string): void {
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

function padding(context: CanvasRenderingContext2D, p: Props, a: Area, muted: string): void {
  if (p.padding) hatch(context, a.left + p.cols * p.cellWidth - a.scroll + 2, a.top, PAD_WIDTH - 2, p.rows * p.cellHeight, muted);
}

function marks(context: CanvasRenderingContext2D, p: Props, a: Area, ink: string): void {
  const box = (row: number, col: number, rows: number, cols: number, weight: number, dash: number[]) => {
    context.strokeStyle = ink;
    context.lineWidth = weight;
    context.setLineDash(dash);
    const inset = p.cellWidth >= 6 ? 1 : 0;
    context.strokeRect(
      a.left + col * p.cellWidth - a.scroll - 0.5,
      a.top + row * p.cellHeight - 0.5,
      cols * p.cellWidth - inset + 1,
      rows * p.cellHeight - inset + 1,
    );
    context.setLineDash([]);
  };
  if (p.markRow != null && p.markRow >= 0) box(p.markRow, 0, 1, p.cols, 1, []);
  if (p.markCol != null && p.markCol >= 0) box(0, p.markCol, p.rows, 1, 1, []);
  if (p.selected) box(p.selected.row, p.selected.col, 1, 1, 2.5, []);
  if (a.cursor) box(a.cursor.row, a.cursor.col, 1, 1, 1.5, [3, 2]);
}

function columnLabels(context: CanvasRenderingContext2D, p: Props, a: Area, first: number, last: number, ink: string, muted: string): void {
  if (!p.colLabel || !a.head) return;
  const every = Math.max(1, Math.ceil((p.slanted ? 11 : 24) / p.cellWidth));
  context.font = "11px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace";
  for (let col = first; col < last; col++) {
    const chosen = col === p.selected?.col || col === p.markCol;
    if (!chosen && col % every !== 0) continue;
    const x = a.left + col * p.cellWidth - a.scroll;
    context.fillStyle = chosen ? ink : muted;
    if (p.slanted) {
      context.save();
      const y = p.colLabelsBelow ? p.rows * p.cellHeight + 5 : a.top - 4;
      context.translate(x + p.cellWidth / 2, y);
      context.rotate(p.colLabelsBelow ? Math.PI / 2 : -Math.PI / 2);
      context.textAlign = "left";
      context.textBaseline = "middle";
      context.fillText(cut(context, p.colLabel(col), a.head - 8), 0, 0);
      context.restore();
    } else {
      context.textAlign = "left";
      context.textBaseline = "middle";
      context.fillText(cut(context, p.colLabel(col), p.cellWidth * every - 6), x + 3, a.head / 2);
    }
  }
  context.textAlign = "left";
}

function rowLabels(context: CanvasRenderingContext2D, p: Props, a: Area, ink: string, muted: string, panel: string): void {
  if (!p.rowLabel || !a.left) return;
  context.fillStyle = panel;
  context.fillRect(0, 0, a.left - 2, a.height);
  context.textBaseline = "middle";
  context.textAlign = "right";
  context.font = "11px system-ui, sans-serif";
  const every = Math.max(1, Math.ceil(12 / p.cellHeight));
  for (let row = 0; row < p.rows; row++) {
    const chosen = row === p.selected?.row || row === p.markRow;
    if (!chosen && row % every !== 0) continue;
    context.fillStyle = chosen ? ink : muted;
    context.fillText(cut(context, p.rowLabel(row), a.left - 8), a.left - 7, a.top + row * p.cellHeight + p.cellHeight / 2);
  }
  context.textAlign = "left";
}
