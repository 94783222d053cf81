// One stop for the Tab key in a long row of options: the chosen one; focus goes with it.
import { useEffect } from "preact/hooks";
import type { RefObject } from "preact";

/** Keep the focus on the chosen option of a box while the focus is in it. */
export function useRovingFocus(box: RefObject<HTMLElement | null>, chosen: unknown): void {
  useEffect(() => {
    const element = box.current;
    if (!element?.contains(document.activeElement)) return;
    element.querySelector<HTMLElement>("[role=option][aria-selected=true]")?.focus({ preventScroll: true });
  }, [chosen]);
}
