// Draws a dashboard as Grafana does: its own components over data frames, in its own theme. `window.page` is what to draw,
// `window.drawn` counts the panels that are there, `window.failures` holds what went wrong.
import { createRoot } from 'react-dom/client';
import { Component, type ReactNode, useEffect, useState } from 'react';
import {
  applyFieldOverrides,
  cacheFieldDisplayNames,
  createTheme,
  type DataFrame,
  dateTime,
  type Field,
  FieldConfigOptionsRegistry,
  type FieldConfigSource,
  FieldType,
  getFieldDisplayValues,
  type GrafanaTheme2,
  renderMarkdown,
  standardTransformers,
  standardTransformersRegistry,
  ThemeContext,
  type TimeRange,
  transformDataFrame,
} from '@grafana/data';
import {
  BigValue,
  BigValueColorMode,
  BigValueGraphMode,
  BigValueTextMode,
  GlobalStyles,
  PanelChrome,
  TimeSeries,
  VizRepeater,
} from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import { framesOf, type Series, type Target } from './frames';
import { Heatmap } from './heatmap';
import { StateTimeline } from './state_timeline';

interface Place {
  h: number;
  w: number;
  x: number;
  y: number;
}

interface PanelModel {
  id: number;
  type: string;
  title: string;
  description?: string;
  gridPos: Place;
  options: any;
  fieldConfig: FieldConfigSource;
  targets?: Target[];
  transformations?: Array<{ id: string; options: any }>;
}

interface Page {
  dashboard: { title: string; panels: PanelModel[] };
  answers: Record<string, Record<string, Series[]>>;
  from: number;
  to: number;
  step: number;
  width: number;
  dark: boolean;
}

declare global {
  interface Window {
    page: Page;
    drawn: number;
    failures: string[];
  }
}

const CELL = 38;
const GAP = 8;

standardTransformersRegistry.setInit(() =>
  ['merge', 'sortBy', 'organize', 'filterFieldsByName'].map((id) => {
    const transformation = Object.values(standardTransformers).find((known: any) => known.id === id) as any;
    return { id, name: id, transformation: () => Promise.resolve(transformation), editor: () => null, imageDark: '', imageLight: '' } as any;
  })
);

/** Every property that an override may set; what a panel's plugin would register. */
function registryOf(config: FieldConfigSource): FieldConfigOptionsRegistry {
  const names = new Set([
    ...config.overrides.flatMap((override) => override.properties.map((property) => property.id)),
    ...Object.keys(config.defaults.custom ?? {}).map((key) => `custom.${key}`),
  ]);
  const standard = ['unit', 'min', 'max', 'decimals', 'displayName', 'noValue', 'color', 'thresholds', 'mappings', 'links'];
  const item = (id: string) => ({
    id,
    path: id.replace(/^custom\./, ''),
    isCustom: id.startsWith('custom.'),
    name: id,
    process: (value: unknown) => value,
    shouldApply: (field: Field) => !id.startsWith('custom.') || field.type !== FieldType.time,
    getItemsCount: () => 0,
    override: () => null,
    editor: () => null,
    settings: {},
  });
  return new FieldConfigOptionsRegistry(() => [...new Set([...standard, ...names])].map((id) => item(id) as any));
}

function Panel({ model, page, theme }: { model: PanelModel; page: Page; theme: GrafanaTheme2 }) {
  const unit = (page.width - GAP) / 24;
  const { x, y, w, h } = model.gridPos;
  const place = { left: x * unit + GAP, top: y * CELL, width: w * unit - GAP, height: h * CELL - GAP };
  const at = { position: 'absolute' as const, left: place.left, top: place.top };
  if (model.type === 'row') {
    return <div style={{ ...at, fontWeight: 500, fontSize: 16, paddingTop: 4, color: theme.colors.text.primary }}>⌄ {model.title}</div>;
  }
  return (
    <div style={at} data-panel={model.title}>
      <PanelChrome title={model.title} description={model.description} width={place.width} height={place.height}>
        {(width: number, height: number) => (
          <Guard title={model.title}>
            <Content model={model} page={page} theme={theme} width={width} height={height} />
          </Guard>
        )}
      </PanelChrome>
    </div>
  );
}

/** A panel that cannot be drawn is named, and the others are drawn. */
class Guard extends Component<{ title: string; children: ReactNode }, { failed: boolean }> {
  state = { failed: false };

  static getDerivedStateFromError() {
    return { failed: true };
  }

  componentDidCatch(error: Error) {
    window.failures.push(`${this.props.title}: ${error.message}`);
  }

  render() {
    return this.state.failed ? 'cannot be drawn' : this.props.children;
  }
}

function Content(props: { model: PanelModel; page: Page; theme: GrafanaTheme2; width: number; height: number }) {
  const { model, page, theme, width, height } = props;
  const [frames, setFrames] = useState<DataFrame[] | null>(null);
  useEffect(() => {
    if (model.type === 'text' || frames !== null) {
      requestAnimationFrame(() => (window.drawn += 1));
    }
  }, [model, frames]);
  useEffect(() => {
    if (model.type === 'text') {
      return;
    }
    const targets = model.targets ?? [];
    const asked = targets.flatMap((target) =>
      framesOf(target, page.answers[model.title]?.[target.refId] ?? [], targets.length, page.step * 1000)
    );
    transformDataFrame(model.transformations ?? [], asked).subscribe((data) => {
      const shown = applyFieldOverrides({
        data,
        fieldConfig: model.fieldConfig,
        fieldConfigRegistry: registryOf(model.fieldConfig),
        replaceVariables: (text: string) => text,
        theme,
        timeZone: 'utc',
      });
      cacheFieldDisplayNames(shown);
      setFrames(shown);
    });
  }, [model, page, theme]);
  if (model.type === 'text') {
    return <div style={{ padding: 8 }} dangerouslySetInnerHTML={{ __html: renderMarkdown(model.options.content) }} />;
  }
  if (frames === null) {
    return null;
  }
  const empty = frames.every((frame) => frame.length === 0 || frame.fields.length === 0);
  if (empty && model.type !== 'stat') {
    return <Nothing text={model.fieldConfig.defaults.noValue ?? 'No data'} width={width} height={height} />;
  }
  const range = rangeOf(page);
  switch (model.type) {
    case 'timeseries':
      return (
        <TimeSeries frames={frames} width={width} height={height} timeRange={range} timeZone="utc" legend={model.options.legend} options={model.options} />
      );
    case 'stat':
      return <Stat model={model} frames={frames} width={width} height={height} theme={theme} />;
    case 'table':
      return <TableNG data={frames[0]} width={width} height={height} fieldConfig={model.fieldConfig} />;
    case 'heatmap':
      return <Heatmap frames={frames} width={width} height={height} range={range} theme={theme} axisUnit={model.options.yAxis.unit} unit={model.fieldConfig.defaults.unit ?? 'none'} step={page.step * 1000} />;
    case 'state-timeline':
      return <StateTimeline frames={frames} width={width} height={height} range={range} theme={theme} step={page.step * 1000} />;
    default:
      window.failures.push(`${model.title}: nothing here draws a panel of type ${model.type}`);
      return null;
  }
}

function Stat({ model, frames, width, height, theme }: { model: PanelModel; frames: DataFrame[]; width: number; height: number; theme: GrafanaTheme2 }) {
  const values = () =>
    getFieldDisplayValues({
      fieldConfig: model.fieldConfig,
      reduceOptions: model.options.reduceOptions,
      replaceVariables: (text: string) => text,
      theme,
      data: frames,
      sparkline: model.options.graphMode !== 'none',
      timeZone: 'utc',
    });
  return (
    <VizRepeater
      getValues={values}
      source={frames}
      renderCounter={0}
      orientation={model.options.orientation}
      width={width}
      height={height}
      renderValue={({ value, width, height, count }) => (
        <BigValue
          value={value.display}
          count={count}
          sparkline={value.sparkline}
          colorMode={model.options.colorMode as BigValueColorMode}
          graphMode={model.options.graphMode as BigValueGraphMode}
          textMode={model.options.textMode as BigValueTextMode}
          width={width}
          height={height}
          theme={theme}
        />
      )}
    />
  );
}

function Nothing({ text, width, height }: { text: string; width: number; height: number }) {
  return <div style={{ width, height, display: 'flex', alignItems: 'center', justifyContent: 'center', opacity: 0.75 }}>{text}</div>;
}

function rangeOf(page: Page): TimeRange {
  const [from, to] = [dateTime(page.from * 1000), dateTime(page.to * 1000)];
  return { from, to, raw: { from, to } };
}

function Dashboard({ page }: { page: Page }) {
  const theme = createTheme({ colors: { mode: page.dark ? 'dark' : 'light' }, typography: { fontFamily: 'Arial, sans-serif' } });
  const bottom = Math.max(...page.dashboard.panels.map((panel) => panel.gridPos.y + panel.gridPos.h)) * CELL;
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles isExtensionSidebarOpen={false} />
      <div style={{ position: 'relative', width: page.width, height: bottom + GAP, background: theme.colors.background.canvas }} id="dashboard">
        {page.dashboard.panels.map((model) => (
          <Panel key={model.id} model={model} page={page} theme={theme} />
        ))}
      </div>
    </ThemeContext.Provider>
  );
}

window.failures = [];
window.drawn = 0;
window.addEventListener('error', (event) => window.failures.push(String(event.message)));
window.addEventListener('unhandledrejection', (event) => window.failures.push(String(event.reason)));
createRoot(document.getElementById('root')!).render(<Dashboard page={window.page} />);
