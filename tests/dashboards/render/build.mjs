// Bundles the page that draws dashboards: `node build.mjs OUT`; packages are looked up in NODE_PATH.
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const here = path.dirname(fileURLToPath(import.meta.url));
const { build } = createRequire(path.join(process.env.NODE_PATH, 'x.js'))('esbuild');

await build({
  entryPoints: [path.join(here, 'main.tsx')],
  outfile: process.argv[2],
  bundle: true,
  format: 'iife',
  jsx: 'automatic',
  define: { 'process.env.NODE_ENV': '"development"', global: 'window' },
  loader: { '.svg': 'dataurl', '.png': 'dataurl', '.woff2': 'empty', '.woff': 'empty', '.ttf': 'empty' },
  logLevel: 'error',
  nodePaths: [process.env.NODE_PATH],
});
