// A figure's histogram, the wrong ones apart, with a brush to filter by.
import { useMemo, useRef, useState } from "preact/hooks";
import { number } from "../format";
import { bins } from "../list";
import { filters, go } from "../state";
import type { Figure } from "../types";

const BINS = 28;
const TALL = 28;

interface Props {
  figure: Figure;
  values: Float32Array;
  correct: Float32Array | undefined;
}

const rounded = (v: number): number => Number(v.toPrecision(3));

export function Histogram({ figure, values, correct }: Props) {
  const svg = useRef<SVGSVGElement>(null);
  const [start, setStart] = useState<number | null>(null);
  const counted = useMemo(() => bins(values, correct, figure, BINS), [values, correct, figure]);
  const [low, high] = filters.value.ranges[figure.name] ?? [null, null];
  const span = counted.high - counted.low;
  const place = (v: number) => (100 * (v - counted.low)) / span;
  const valueAt = (event: PointerEvent): number => {
    const box = svg.current!.getBoundingClientRect();
    return counted.low + span * Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
  };
  const set = (a: number | null, b: number | null) => {
    const ranges = { ...filters.value.ranges };
    const from = a === null || a <= counted.low ? null : a;
    const to = b === null || b >= counted.high ? null : b;
    if (from === null && to === null) delete ranges[figure.name];
    else ranges[figure.name] = [from, to];
    go({ ranges });
  };
  const drag = (event: PointerEvent) => {
    if (start === null) return;
    const now = valueAt(event);
    set(rounded(Math.min(start, now)), rounded(Math.max(start, now)));
  };
  const short = figure.label.split(",")[0];
  const typed = (text: string): number | null => (text === "" ? null : Number(text));
  const [from, to] = [place(low ?? counted.low), place(high ?? counted.high)];
  return (
    <fieldset class="histogram">
      <legend>{short}{figure.unit && ` (${figure.unit})`}</legend>
      <svg
        ref={svg}
        viewBox={`0 0 100 ${TALL}`}
        preserveAspectRatio="none"
        aria-hidden="true"
        onPointerDown={(e) => {
          e.currentTarget.setPointerCapture(e.pointerId);
          setStart(valueAt(e));
        }}
        onPointerMove={drag}
        onPointerUp={(e) => {
          if (start !== null && Math.abs(valueAt(e) - start) < span / 100) set(null, null);
          setStart(null);
        }}
        onPointerCancel={() => setStart(null)}
      >
        {(low !== null || high !== null) && (
          <rect class="brushed" x={from} width={Math.max(0.5, to - from)} y={0} height={TALL} />
        )}
        {Array.from({ length: BINS }, (_, i) => (
          <Bin key={i} i={i} right={counted.right[i]} wrong={counted.wrong[i]} most={counted.most} />
        ))}
      </svg>
      <div class="ends">
        <input
          type="number"
          step="any"
          aria-label={`${short} from`}
          placeholder={number(counted.low)}
          value={low ?? ""}
          onChange={(e) => set(typed(e.currentTarget.value), high)}
        />
        <input
          type="number"
          step="any"
          aria-label={`${short} to`}
          placeholder={number(counted.high)}
          value={high ?? ""}
          onChange={(e) => set(low, typed(e.currentTarget.value))}
        />
      </div>
    </fieldset>
  );
}

/** One bar: its height is the root of the count, so that a single example can be seen. */
function Bin({ i, right, wrong, most }: { i: number; right: number; wrong: number; most: number }) {
  const count = right + wrong;
  if (count === 0) return null;
  const tall = Math.max(0.6, (TALL - 2) * Math.sqrt(count / most));
  const wrongTall = wrong === 0 ? 0 : Math.max(2.5, (tall * wrong) / count);
  const [x, width] = [(100 * i) / BINS + 0.3, 100 / BINS - 0.6];
  return (
    <g>
      <rect class="bin" x={x} width={width} y={TALL - tall} height={tall} />
      <rect class="bin-wrong" x={x} width={width} y={TALL - wrongTall} height={wrongTall} />
    </g>
  );
}
