import { defineConfig } from "vitest/config";

// The bundle is committed inside the package, so that a wheel ships it and nobody needs Node to look at a run.
export default defineConfig({
  base: "./",
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: "../src/decision_traces/page/static",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    target: "es2022",
    rollupOptions: {
      output: {
        entryFileNames: "assets/page.js",
        chunkFileNames: "assets/[name].js",
        assetFileNames: "assets/[name][extname]",
      },
    },
  },
  test: { css: true }, // a test reads the colours
  server: { proxy: { "/api": "http://127.0.0.1:8377" } },
});
