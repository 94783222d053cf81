// What the server answers with: see decision_traces/page/resources.py.

export interface Figure {
  name: string;
  label: string;
  unit: string;
  min: number;
  max: number;
  known: number;
  categories: string[] | null;
}

export interface Missing {
  why: string;
  command: string;
}

/** The kind of decision that a run is about; see `task.ts` for what follows from it. */
export interface Task {
  name: string;
  /** What is decided between: tokens behind a prompt, or sequences that the model reads each by itself. */
  choices: "tokens" | "sequences" | null;
  n_choices: number | null;
  /** Whether tokens are predicted where they stand, in place of a mask. */
  fills_gaps: boolean;
  /** Whether the list shows the ends of texts, where predictions are made. */
  list_from_end: boolean;
  words: { tokens: string; where: string; truth: string };
}

export interface Meta {
  key: string;
  run_id: string;
  path: string;
  /** The lines that open the run. */
  python: string;
  model: string | null;
  dataset: string | null;
  split: string | null;
  capture: string[] | null;
  task: Task;
  n: number;
  T: number;
  L: number;
  H: number;
  attention: { array: string; layers: number[]; heads: number[] } | null;
  lens: { all_positions: boolean; scale: { entropy: number; kl: number }; vocab_size: number } | null;
  contributions: { all_positions: boolean; parts: string[]; of: "token" | "choice" } | null;
  missing: Partial<Record<"attention" | "lens" | "contributions" | "by_choice", Missing>>;
  partial: { lens: string; contributions: string };
  figures: Figure[];
  rows_per_part: number;
  values_per_part: number;
  uncertified: string | null;
}

export interface Runs {
  version: string;
  bundle: boolean;
  exact: boolean;
  runs: { key: string; run_id: string }[];
}

export interface Rows {
  id: string[];
  text: string[];
  target?: (string | null)[];
  said?: (string | null)[];
}

export interface Word {
  id: number;
  text: string;
  prob: number | null;
}

export interface Decision {
  pos: number | null;
  correct: boolean | null;
  known: boolean;
  true?: Word | null;
  pred?: Word;
  entropy?: number | null;
  margin?: number | null;
  rank?: number | null;
  top?: Word[];
}

export interface Choice {
  label: string;
  text: string;
  id: number;
  logit: number;
  prob: number;
  right: boolean;
  given: boolean;
}

export interface AttentionLayout {
  keys: number;
  queries: number[] | null;
  rows: number;
  pool: number;
  thumb_pool: number;
  block: number;
}

export interface Tokens {
  example_id: string;
  row: number;
  choice: number;
  text: string;
  question: string | null;
  tokens: string[];
  n_tokens: number;
  padding: number;
  /** The example's own. */
  decision: Decision | null;
  /** All that were made: of masked tokens one each; of a text that of its last token and of what comes after it. */
  decisions: Decision[];
  choices: Choice[] | null;
  attention: AttentionLayout | null;
  python: { tokens: string; decision: string; attention: string | null };
}

export interface Outcomes {
  pos: number[];
  true_prob: (number | null)[];
  entropy: (number | null)[];
  rank: (number | null)[];
  pred: string[];
}

export interface LensHead {
  pos: number[];
  known: number[];
  depths: number;
  top: number;
  statistics: string[];
  states_per_block: number;
  candidates: number[][];
  words: Record<number, string>;
  python: { lens: string; trajectories: string };
}

export interface Contributions {
  pos: number;
  of: "token" | "choice";
  candidates: { id: number; text: string }[];
  parts: string[];
  /** Where the model caps its logits, at what: the parts add up to the lead before that. */
  logit_cap: number | null;
  values: number[][];
  heads: number[][][] | null;
  python: string;
}

export interface ByChoice {
  labels: string[];
  logits: number[][];
  probs: number[][];
  python: string;
}
