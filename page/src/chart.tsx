// An Observable Plot in a box that follows its width.
import { useEffect } from "preact/hooks";
import { theme } from "./colour";
import { useWidth } from "./width";

export function Chart(p: { label: string; make: (width: number) => Element; version: unknown; height: number }) {
  const [box, width] = useWidth<HTMLDivElement>();
  useEffect(() => {
    const element = box.current;
    if (!element || width === 0) return;
    element.replaceChildren(p.make(width));
  }, [p.version, width, theme.value]);
  return <div class="chart" ref={box} role="img" aria-label={p.label} style={{ minHeight: `${p.height}px` }} />;
}
