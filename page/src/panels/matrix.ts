// How large a matrix of attention is drawn.

/** The room for the labels of the rows, in pixels. */
export const LABEL = 84;
/** Cells of this size have room for a label beside them. */
export const LABELLED = 9;
const TALL = 560;

/** Return how large cells are drawn so that a matrix fits, with labels where they can be read. */
export function cellSize(width: number, rows: number, cols: number): number {
  const high = TALL / Math.max(1, rows);
  const room = Math.min((width - LABEL) / cols, high);
  if (room >= LABELLED) return Math.min(22, Math.floor(room));
  const small = Math.min(LABELLED - 1, width / cols, high);
  return small >= 3 ? Math.floor(small) : Math.max(1, small);
}
