// Examples to test with: four tokens, a lens of three depths, contributions of two candidates.
import type { Lens } from "../src/api";
import type { Side } from "../src/side";
import type { AttentionLayout, Meta, Tokens } from "../src/types";

export const layout = (more: Partial<AttentionLayout> = {}): AttentionLayout => ({
  keys: 4, queries: null, rows: 4, pool: 1, thumb_pool: 1, block: 4, ...more,
});

export function metaOf(more: Partial<Meta> = {}): Meta {
  return {
    key: "r0", run_id: "run", path: "/run", python: "st = TraceStore('/run')", model: null, dataset: null, split: null, capture: null,
    task: {
      name: "next_token", choices: null, n_choices: null, fills_gaps: false, list_from_end: true,
      words: { tokens: "Tokens", where: "after", truth: "the text goes on" },
    },
    n: 10, T: 8, L: 2, H: 2,
    attention: { array: "dec_self_attn", layers: [0, 1], heads: [0, 1] },
    lens: { all_positions: true, scale: { entropy: 4, kl: 8 }, vocab_size: 100 },
    contributions: null, missing: {}, partial: { lens: "", contributions: "" }, figures: [],
    rows_per_part: 5, values_per_part: 10, uncertified: null, ...more,
  };
}

/** A lens of three depths and one slot, that of token 2; `probs` are the two candidates' at every depth. */
export function lensOf(probs: [number, number][], rank: number, known = 1): Lens {
  const depths = probs.length;
  return {
    pos: [2], known: [known], depths, top: 2, statistics: ["prob", "rank", "entropy", "kl"], states_per_block: depths,
    candidates: [[7, 8]], words: { 7: " cat", 8: " dog" }, python: { lens: "", trajectories: "" },
    values: {
      prob: Float32Array.from(probs, ([p]) => p), rank: new Float32Array(depths).fill(rank),
      entropy: new Float32Array(depths), kl: new Float32Array(depths),
    },
    topIds: Int32Array.from(probs.flatMap(([a, b]) => (a > b ? [7, 8] : [8, 7]))),
    topProbs: Float32Array.from(probs.flatMap(([a, b]) => [Math.max(a, b), Math.min(a, b)])),
    candidateProbs: Float32Array.from(probs.flat()),
    slotOf: new Map([[2, 0]]),
  };
}

export function sideWith(lens: Lens, more: Partial<Side> = {}): Side {
  const tokens: Tokens = {
    example_id: "tiny-1", row: 1, choice: 0, text: "", question: null, tokens: ["a", " b", " c", " d"], n_tokens: 4,
    padding: 0, decision: null, decisions: [], choices: null, attention: layout(),
    python: { tokens: "st.encodings('tiny-1')", decision: "", attention: null },
  };
  return {
    place: { run: "r0", ex: "tiny-1", pos: 2, choice: 0 }, meta: metaOf(), row: 1, tokens, lens: { value: lens },
    contributions: {}, byChoice: {}, pos: 2, slot: 0, target: { id: 7, text: " cat" }, competitor: { id: 8, text: " dog" },
    shown: { layer: 1, head: 0 }, ...more,
  };
}
