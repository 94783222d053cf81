import { describe, expect, it } from "vitest";
import { script } from "../src/script";
import { lensOf, sideWith } from "./sides";

const side = sideWith(lensOf([[0.5, 0.2]], 1));

describe("the Python of a panel", () => {
  it("opens the run, says what was chosen, and reads", () =>
    expect(script(side, "st.attn(0, layer=layer, head=head)", { layer: 3, head: 0 })).toBe(
      "st = TraceStore('/run')\nlayer = 3\nhead = 0\nst.attn(0, layer=layer, head=head)",
    ));
  it("writes a statistic as a literal", () =>
    expect(script(side, "grid[stat]", { stat: "prob" })).toBe("st = TraceStore('/run')\nstat = \"prob\"\ngrid[stat]"));
  it("is none where there is nothing to read", () => expect(script(side, null)).toBeUndefined());
});
