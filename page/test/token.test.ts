import { afterEach, expect, it, vi } from "vitest";

afterEach(() => {
  vi.resetModules();
  vi.unstubAllGlobals();
});

async function opened(address: string): Promise<{ credentials: RequestInit; left: string | undefined }> {
  let left: string | undefined;
  const { pathname, search, hash } = new URL(address);
  vi.stubGlobal("location", { pathname, search, hash });
  vi.stubGlobal("history", { replaceState: (_: unknown, __: string, path: string) => (left = path) });
  const { credentials } = await import("../src/token");
  return { credentials, left };
}

it("takes the token out of the address, and sends it along", async () => {
  const { credentials, left } = await opened("http://127.0.0.1:8377/?token=a_b-c&ex=x~1");
  expect(credentials).toEqual({ headers: { "X-Token": "a_b-c" } });
  expect(left).toBe("/?ex=x%7E1");
});

it("sends nothing where the address brings none", async () => {
  expect(await opened("http://files.test/site/?ex=1")).toEqual({ credentials: {}, left: undefined });
});
