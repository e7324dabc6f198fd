// A stand-in for Grafana's heatmap, which is no part of its libraries: a row for each size, the more the brighter.
import { type DataFrame, getFieldDisplayName, getValueFormat, formattedValueToString, type GrafanaTheme2, type TimeRange } from '@grafana/data';

const CIVIDIS = ['#00224e', '#123570', '#3b496c', '#575d6d', '#707173', '#8a8678', '#a59c74', '#c3b369', '#e1cc55', '#fee838'];
const AXIS = 110;
const FOOT = 34;

interface Props {
  frames: DataFrame[];
  width: number;
  height: number;
  range: TimeRange;
  theme: GrafanaTheme2;
  axisUnit: string;
  unit: string;
  step: number;
}

export function Heatmap({ frames, width, height, range, theme, axisUnit, unit, step }: Props) {
  const [from, to] = [range.from.valueOf(), range.to.valueOf()];
  const most = Math.max(0, ...frames.flatMap((frame) => frame.fields[1].values.filter(Number.isFinite)));
  const row = (height - FOOT) / frames.length;
  const x = (time: number) => AXIS + ((time - from) / (to - from)) * (width - AXIS);
  const color = (value: number) => CIVIDIS[Math.min(CIVIDIS.length - 1, Math.floor(Math.sqrt(value / most) * CIVIDIS.length))];
  const name = (frame: DataFrame) => {
    const text = getFieldDisplayName(frame.fields[1], frame, frames);
    return Number.isFinite(Number(text)) ? formattedValueToString(getValueFormat(axisUnit)(Number(text))) : text;
  };
  return (
    <svg width={width} height={height} fontSize={12} fill={theme.colors.text.primary}>
      {frames.map((frame, index) => (
        <g key={index}>
          <text x={AXIS - 8} y={height - FOOT - (index + 0.5) * row + 4} textAnchor="end">
            {name(frame)}
          </text>
          {frame.fields[0].values.map((time, at) => {
            const value = frame.fields[1].values[at];
            return value > 0 ? (
              <rect key={at} x={x(time)} y={height - FOOT - (index + 1) * row} width={Math.max(1, x(time + step) - x(time) - 1)} height={row - 1} fill={color(value)} />
            ) : null;
          })}
        </g>
      ))}
      {CIVIDIS.map((shade, index) => (
        <rect key={shade} x={AXIS + index * 16} y={height - 18} width={16} height={8} fill={shade} />
      ))}
      <text x={AXIS + CIVIDIS.length * 16 + 8} y={height - 10}>
        {formattedValueToString(getValueFormat(unit)(most))}
      </text>
    </svg>
  );
}
