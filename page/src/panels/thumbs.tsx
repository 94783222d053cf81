// All heads of a layer, small.
import { useEffect, useRef } from "preact/hooks";
import * as api from "../api";
import { colours, theme } from "../colour";
import { signed } from "../format";
import { lead, type Side } from "../side";
import { go } from "../state";
import { Waiting } from "./frame";

export function Thumbs({ side }: { side: Side }) {
  const { layer, head } = side.shown;
  const layout = side.tokens.attention!;
  const axes = side.meta.attention;
  if (layer === null || !axes?.layers.includes(layer)) return null;
  const { value: bytes, error } = api.thumbs(side.place.run, side.row, side.place.choice, layer);
  if (error) return <Waiting error={error} />;
  const pushes = lead(side)?.heads?.[layer];
  const size = (h: number) => Math.abs(pushes?.[h] ?? 0);
  const order = axes.heads.map((h, i) => ({ h, i })).sort((a, b) => size(b.h) - size(a.h) || a.h - b.h);
  const rows = Math.ceil(layout.rows / layout.thumb_pool);
  const cols = Math.ceil(layout.keys / layout.thumb_pool);
  const label = `heads of layer ${layer}${pushes ? ", those that push most first" : ""}`;
  return (
    <div class="thumbs" role="group" aria-label={label}>
      {order.map(({ h, i }) => (
        <button
          key={h}
          class="thumb"
          aria-pressed={h === head}
          aria-label={`head ${h}${pushes ? `, ${signed(pushes[h])} logits` : ""}`}
          onClick={() => go({ head: h, layer })}
        >
          <Thumb bytes={bytes?.subarray(i * rows * cols, (i + 1) * rows * cols)} rows={rows} cols={cols} />
          <span>
            {h}
            {pushes && <em class={pushes[h] >= 0 ? "is-target" : "is-competitor"}> {signed(pushes[h], 1)}</em>}
          </span>
        </button>
      ))}
    </div>
  );
}

function Thumb({ bytes, rows, cols }: { bytes: Uint8Array | undefined; rows: number; cols: number }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const context = canvas.current?.getContext("2d");
    if (!context || !bytes || rows === 0 || cols === 0) return;
    const table = colours("magnitude", theme.value);
    const image = context.createImageData(cols, rows);
    for (let i = 0; i < rows * cols; i++) {
      image.data.set(table.subarray(3 * bytes[i], 3 * bytes[i] + 3), 4 * i);
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }, [bytes?.buffer, bytes?.byteOffset, rows, cols, theme.value]);
  return <canvas ref={canvas} width={Math.max(1, cols)} height={Math.max(1, rows)} aria-hidden="true" />;
}
