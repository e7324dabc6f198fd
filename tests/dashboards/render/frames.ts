// What Prometheus answered, as the data frames that Grafana's Prometheus data source makes of it.
import { type DataFrame, type Field, FieldType } from '@grafana/data';

export interface Series {
  metric: Record<string, string>;
  values?: Array<[number, string]>;
  value?: [number, string];
}

export interface Target {
  refId: string;
  expr: string;
  format: string;
  instant: boolean;
  legendFormat: string;
}

/** Frames of one query of a panel that has `queries` of them; `step` is in milliseconds. */
export function framesOf(target: Target, answer: Series[], queries: number, step: number): DataFrame[] {
  if (target.format === 'table') {
    return answer.length > 0 ? [table(target, answer, queries)] : [];
  }
  const frames = answer.map((series) => timeSeries(target, series, step));
  return target.format === 'heatmap' ? buckets(frames) : frames;
}

function timeSeries(target: Target, series: Series, step: number): DataFrame {
  const points = series.values ?? (series.value ? [series.value] : []);
  const { __name__: _name, ...labels } = series.metric;
  const name = legend(target.legendFormat, series.metric);
  return {
    refId: target.refId,
    name,
    length: points.length,
    fields: [
      field('Time', FieldType.time, points.map(([time]) => time * 1000), { interval: step }),
      { ...field('Value', FieldType.number, points.map(([, value]) => Number(value)), { displayNameFromDS: name }), labels },
    ],
  };
}

/** Cumulative buckets, in the order of their bounds, as what is in each. */
function buckets(frames: DataFrame[]): DataFrame[] {
  const bound = (frame: DataFrame) => Number((frame.fields[1].labels?.le ?? '').replace('+Inf', 'Infinity'));
  const sorted = [...frames].sort((one, other) => bound(one) - bound(other));
  return sorted.map((frame, index) => {
    if (index === 0) {
      return frame;
    }
    const below = new Map(sorted[index - 1].fields[0].values.map((time, at) => [time, sorted[index - 1].fields[1].values[at]]));
    const values = frame.fields[1].values.map((value, at) => Math.max(0, value - (below.get(frame.fields[0].values[at]) ?? 0)));
    return { ...frame, fields: [frame.fields[0], { ...frame.fields[1], values }] };
  });
}

function table(target: Target, answer: Series[], queries: number): DataFrame {
  const names = [...new Set(answer.flatMap((series) => Object.keys(series.metric)))].sort();
  const value = queries > 1 ? `Value #${target.refId}` : 'Value';
  return {
    refId: target.refId,
    length: answer.length,
    fields: [
      field('Time', FieldType.time, answer.map((series) => (series.value ?? [0])[0] * 1000)),
      ...names.map((name) => field(name, FieldType.string, answer.map((series) => series.metric[name] ?? ''))),
      field(value, FieldType.number, answer.map((series) => Number(series.value?.[1]))),
    ],
  };
}

function legend(format: string, labels: Record<string, string>): string {
  if (format === '__auto') {
    return Object.entries(labels).map(([name, value]) => `${name}="${value}"`).join(', ');
  }
  return format.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, name) => labels[name] ?? '');
}

function field(name: string, type: FieldType, values: unknown[], config: Field['config'] = {}): Field {
  return { name, type, values, config };
}
