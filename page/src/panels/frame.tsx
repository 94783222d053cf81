// What every panel has: a title, its controls, its data and the Python that gives them.
import { signal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useErrorBoundary, useRef } from "preact/hooks";
import type { Missing } from "../types";

export interface Sheet {
  title: string;
  text: string;
  link?: string;
}

export const sheet = signal<Sheet | null>(null);

interface Props {
  name: string;
  title: string;
  note?: ComponentChildren;
  controls?: ComponentChildren;
  data?: () => unknown;
  link?: string;
  python?: string;
  children: ComponentChildren;
}

export function Panel(p: Props) {
  const showData = () => (sheet.value = { title: `${p.title}: data`, text: pretty(p.data!()), link: p.link });
  const showPython = () => (sheet.value = { title: `${p.title}: Python`, text: p.python! });
  return (
    <section class={`panel panel-${p.name}`} aria-labelledby={`title-${p.name}`}>
      <header>
        <h2 id={`title-${p.name}`}>{p.title}</h2>
        {p.note && <span class="note">{p.note}</span>}
        <div class="controls">
          {p.controls}
          {p.data && <button class="plain" onClick={showData}>data</button>}
          {p.python && <button class="plain" onClick={showPython}>python</button>}
        </div>
      </header>
      <Guard what={p.title}>{p.children}</Guard>
    </section>
  );
}

/** Keeps an error in one part of the page from taking the rest with it. */
export function Guard({ what, children }: { what: string; children: ComponentChildren }) {
  const [error, again] = useErrorBoundary((e) => console.error(e));
  useEffect(() => {
    if (error) again(); // something else is to be drawn now
  }, [children]);
  if (!error) return <>{children}</>;
  return (
    <p class="empty" role="alert">
      {what} cannot be drawn: {error instanceof Error ? error.message : String(error)}.{" "}
      <button onClick={again}>try again</button>
    </p>
  );
}

/** JSON with the innermost lists on one line each. */
export function pretty(value: unknown): string {
  const plain = (_: string, v: unknown) => (v instanceof Float32Array || v instanceof Uint8Array ? Array.from(v) : v);
  return JSON.stringify(value, plain, 1).replace(
    /\[\s+([^[\]{}]*?)\s+\]/g,
    (_, inside: string) => `[${inside.replace(/\s*\n\s*/g, " ")}]`,
  );
}

export function Empty({ missing, what }: { missing: Missing; what: string }) {
  return (
    <div class="empty" role="note">
      <p>{missing.why || `There is no ${what}.`}</p>
      {missing.command && (
        <p>
          To make it: <Command text={missing.command} />
        </p>
      )}
    </div>
  );
}

export function Command({ text }: { text: string }) {
  return (
    <span class="command">
      <code>{text}</code>{" "}
      <button class="plain" aria-label={`copy the command ${text}`} onClick={() => void copy(text)}>copy</button>
    </span>
  );
}

export async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

export function Waiting({ error, lines = 3 }: { error?: string; lines?: number }) {
  if (error) return <p class="empty" role="alert">{error}</p>;
  return <div class="waiting" style={{ minHeight: `${lines * 20}px` }} role="status" aria-label="loading" />;
}

interface Choices<T extends string> {
  label: string;
  value: T;
  options: readonly (readonly [T, string])[];
  onChange: (value: T) => void;
}

/** A row of choices of which one is taken. */
export function Choose<T extends string>(p: Choices<T>) {
  return (
    <span class="choose" role="group" aria-label={p.label}>
      {p.options.map(([value, text]) => (
        <button key={value} aria-pressed={value === p.value} onClick={() => p.onChange(value)}>
          {text}
        </button>
      ))}
    </span>
  );
}

export function SheetDialog() {
  const dialog = useRef<HTMLDialogElement>(null);
  const open = sheet.value;
  useEffect(() => {
    if (open && !dialog.current?.open) dialog.current?.showModal();
    if (!open && dialog.current?.open) dialog.current.close();
  }, [open]);
  return (
    <dialog ref={dialog} class="sheet" onClose={() => (sheet.value = null)} aria-label={open?.title}>
      {open && (
        <>
          <header>
            <h2>{open.title}</h2>
            <div class="controls">
              {open.link && (
                <a href={open.link} target="_blank" rel="noreferrer">
                  at its own address
                </a>
              )}
              <button onClick={() => void copy(open.text)}>copy</button>
              <button onClick={() => (sheet.value = null)}>close</button>
            </div>
          </header>
          <pre tabIndex={0}>{open.text}</pre>
        </>
      )}
    </dialog>
  );
}
