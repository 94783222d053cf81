// An Observable Plot in a box that follows its width.
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { theme } from "./colour";

export function Chart(p: { label: string; make: (width: number) => Element; version: unknown; height: number }) {
  const box = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const element = box.current;
    if (!element) return;
    const observer = new ResizeObserver(() => setWidth(element.clientWidth));
    observer.observe(element);
    setWidth(element.clientWidth);
    return () => observer.disconnect();
  }, []);
  useEffect(() => {
    const element = box.current;
    if (!element || width === 0) return;
    element.replaceChildren(p.make(width));
  }, [p.version, width, theme.value]);
  return <div class="chart" ref={box} role="img" aria-label={p.label} style={{ minHeight: `${p.height}px` }} />;
}
