// Writing the address: not more often than browsers allow, and one step back for one walk.

const PAUSE_MS = 350; // Safari refuses more than 100 changes in 30 seconds
const WALK_MS = 1000; // steps that follow each other sooner (a held arrow key) are one step in the history

let pending: string | null = null;
let timer: ReturnType<typeof setTimeout> | undefined;
let written = -Infinity;
let stepped = -Infinity;

/** Keep the address in line with the state: at once, or as soon as the last change is long enough ago. */
export function keepAddress(query: string, moved: boolean): void {
  const now = performance.now();
  const begins = moved && now - stepped > WALK_MS;
  if (moved) stepped = now;
  if (begins) flush(); // where the walk begins is what one comes back to
  pending = query;
  const wait = written + PAUSE_MS - now;
  if (begins) write("pushState");
  else if (wait <= 0) flush();
  else timer ??= setTimeout(flush, wait);
}

/** Write what is still to be written. */
export function flush(): void {
  write("replaceState");
}

/** Forget what was to be written: the reader has gone back, and the address is right. */
export function stopKeeping(): void {
  clearTimeout(timer);
  timer = undefined;
  pending = null;
}

function write(how: "pushState" | "replaceState"): void {
  const query = pending;
  stopKeeping();
  if (query === null || query === location.search) return;
  written = performance.now();
  history[how](null, "", location.pathname + query + location.hash);
}
