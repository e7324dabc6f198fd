// A stand-in for Grafana's state timeline, which is no part of its libraries: stretches of equal values with their words.
import { type DataFrame, type Field, getDisplayProcessor, getFieldDisplayName, type GrafanaTheme2, type TimeRange } from '@grafana/data';

const AXIS = 230;
const FOOT = 22;

interface Props {
  frames: DataFrame[];
  width: number;
  height: number;
  range: TimeRange;
  theme: GrafanaTheme2;
  step: number;
}

interface Stretch {
  from: number;
  to: number;
  value: number;
}

export function StateTimeline({ frames, width, height, range, theme, step }: Props) {
  const [from, to] = [range.from.valueOf(), range.to.valueOf()];
  const row = Math.min(40, (height - FOOT) / frames.length);
  const x = (time: number) => AXIS + ((Math.min(time, to) - from) / (to - from)) * (width - AXIS);
  return (
    <svg width={width} height={height} fontSize={12}>
      {frames.map((frame, index) => {
        const field = frame.fields[1] as Field;
        const display = field.display ?? getDisplayProcessor({ field, theme, timeZone: 'utc' });
        return (
          <g key={index}>
            <text x={AXIS - 8} y={(index + 0.5) * row + 4} textAnchor="end" fill={theme.colors.text.primary}>
              {getFieldDisplayName(field, frame, frames)}
            </text>
            {stretches(frame, step).map((stretch) => {
              const shown = display(stretch.value);
              const [left, right] = [x(stretch.from), x(stretch.to)];
              return (
                <g key={stretch.from}>
                  <rect x={left} y={index * row + row * 0.1} width={Math.max(1, right - left)} height={row * 0.8} fill={shown.color} fillOpacity={0.85} />
                  {right - left > shown.text.length * 7 && row > 14 ? (
                    <text x={left + 4} y={(index + 0.5) * row + 4} fill={theme.colors.getContrastText(shown.color ?? '#888888')}>
                      {shown.text}
                    </text>
                  ) : null}
                </g>
              );
            })}
          </g>
        );
      })}
    </svg>
  );
}

function stretches(frame: DataFrame, step: number): Stretch[] {
  const made: Stretch[] = [];
  frame.fields[0].values.forEach((time: number, at: number) => {
    const value = frame.fields[1].values[at];
    const last = made[made.length - 1];
    if (last !== undefined && last.value === value && time - last.to <= step / 2) {
      last.to = time + step;
    } else {
      made.push({ from: time, to: time + step, value });
    }
  });
  return made;
}
