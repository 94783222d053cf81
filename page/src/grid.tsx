// A grid of coloured cells on a canvas: lens and attention. Cells are drawn when they change; the cursor lies above.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { theme } from "./colour";
import { draw, type Area, type Cell, type Drawing } from "./drawing";
import { useWidth } from "./width";

/** Where something may be shown beside a cell, in the window. */
export interface Point {
  x: number;
  y: number;
}

interface Props extends Drawing {
  label: string;
  /** Where the keyboard begins, and what is said of it, when no cell is selected. */
  start?: Cell | null;
  /** What the cells are drawn from: they are drawn again when one of these changes. */
  version: unknown[];
  say: (cell: Cell) => string;
  /** What is said besides to those who do not see the colours. */
  more?: (cell: Cell) => string;
  onPick: (cell: Cell) => void;
  onHover?: (cell: Cell | null, at: Point) => void;
}

const PAD_WIDTH = 26;
const NOWHERE: Point = { x: 0, y: 0 };
const STEPS: Record<string, [number, number]> = {
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
  ArrowUp: [-1, 0],
  ArrowDown: [1, 0],
};

export function Grid(p: Props) {
  const [box, width] = useWidth<HTMLDivElement>();
  const canvas = useRef<HTMLCanvasElement>(null);
  const mark = useRef<HTMLDivElement>(null);
  const [scroll, setScroll] = useState(0);
  const [hover, setHover] = useState<Cell | null>(null);
  const [cursor, setCursor] = useState<Cell | null>(null);
  const left = p.rowLabelWidth ?? 0;
  const head = p.colLabelHeight ?? 0;
  const top = p.colLabelsBelow ? 0 : head;
  const full = p.cols * p.cellWidth + (p.padding ? PAD_WIDTH : 0);
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
    const area: Area = { left, top, head, view, height, scroll, padWidth: PAD_WIDTH };
    const frame = requestAnimationFrame(() => draw(element, p, area, p.version));
    return () => cancelAnimationFrame(frame);
  }, [
    ...p.version, theme.value, p.selected?.row, p.selected?.col, p.markRow, p.markCol, scroll, view, height,
    p.rows, p.cols, p.cellWidth, p.cellHeight,
  ]);

  const leave = useRef(() => {});
  leave.current = () => p.onHover?.(null, NOWHERE);
  useEffect(() => () => leave.current(), []);

  // The keyboard's cursor is brought into view, and previews what the pointer would.
  useLayoutEffect(() => {
    if (!cursor || !mark.current) return;
    mark.current.scrollIntoView({ block: "nearest", inline: "nearest" });
    const bounds = mark.current.getBoundingClientRect();
    p.onHover?.(cursor, { x: bounds.right, y: bounds.bottom });
  }, [cursor?.row, cursor?.col]);

  const inside = (cell: Cell | null | undefined): Cell | null =>
    cell && cell.row >= 0 && cell.col >= 0 && cell.row < p.rows && cell.col < p.cols ? cell : null;
  const find = (event: MouseEvent): Cell | null => {
    const bounds = canvas.current!.getBoundingClientRect();
    const x = event.clientX - bounds.left - left;
    const y = event.clientY - bounds.top - top;
    if (x < 0 || y < 0) return null;
    return inside({ row: Math.floor(y / p.cellHeight), col: Math.floor((x + scroll) / p.cellWidth) });
  };
  const move = (event: PointerEvent) => {
    const cell = find(event);
    if (cell?.row !== hover?.row || cell?.col !== hover?.col) setHover(cell);
    p.onHover?.(cell, { x: event.clientX, y: event.clientY });
  };
  const forget = () => {
    setCursor(null);
    p.onHover?.(null, NOWHERE);
  };
  const key = (event: KeyboardEvent) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = STEPS[event.key];
    const now = inside(cursor) ?? inside(p.selected) ?? inside(p.start) ?? { row: 0, col: 0 };
    if (step) {
      event.preventDefault();
      event.stopPropagation();
      setHover(null); // the pointer may rest here: the keyboard goes before it
      setCursor({ row: clamp(now.row + step[0], p.rows), col: clamp(now.col + step[1], p.cols) });
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      p.onPick(now);
    } else if (event.key === "Escape") forget();
  };
  const framed = inside(hover) ?? inside(cursor);
  const told = framed ?? inside(p.selected) ?? inside(p.start);
  const x = framed ? framed.col * p.cellWidth : 0;
  return (
    <div class="grid">
      <div class="grid-scroll" ref={box} onScroll={() => setScroll(box.current?.scrollLeft ?? 0)}>
        <div class="grid-cells" style={{ width: `${left + full}px`, height: `${height}px` }}>
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
              p.onHover?.(null, NOWHERE);
            }}
            onClick={(event) => {
              const cell = find(event);
              if (cell) p.onPick(cell);
            }}
            onKeyDown={key}
            onBlur={forget}
          />
          {framed && (
            <div
              ref={mark}
              class={x < scroll ? "grid-cursor hidden" : "grid-cursor"}
              style={{
                left: `${left + x}px`,
                top: `${top + framed.row * p.cellHeight}px`,
                width: `${p.cellWidth}px`,
                height: `${p.cellHeight}px`,
                scrollMarginLeft: `${left + 4}px`,
              }}
            />
          )}
        </div>
      </div>
      <p class="live" aria-live="polite">
        {told ? p.say(told) : "\u00a0"}
        {told && p.more && <span class="sr"> {p.more(told)}</span>}
      </p>
    </div>
  );
}

function clamp(value: number, size: number): number {
  return Math.max(0, Math.min(size - 1, value));
}
