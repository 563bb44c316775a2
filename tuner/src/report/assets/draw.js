// Draws a device's rows: for each schedule compute, offloads and reloads; then memory.
(() => {
  const { KINDS, curve, first, find, tick } = optpipe;

  // Colours that depend on light and dark come from the style sheet.
  function theme() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    return {
      text: colour("--text"), muted: colour("--muted"), idle: colour("--idle"), track: colour("--track"),
      memory: colour("--memory"), line: colour("--line"), limit: colour("--limit"), grid: colour("--grid"),
      slower: colour("--slower"), faster: colour("--faster"), background: colour("--background"),
    };
  }

  // Heights of the bands of one device's canvas, in pixels.
  function layout(shown, devices) {
    const dense = devices > 12;
    const copies = shown.some((schedule) => schedule.copies);
    const compute = dense && copies ? 16 : 26;
    const lane = dense ? 5 : 8;
    const memory = dense ? 20 : 36;
    const bands = [];
    let y = 0;
    shown.forEach((schedule, which) => {
      bands.push({ which, lane: 0, y, height: compute });
      y += compute + 1;
      if (copies) {
        bands.push({ which, lane: 1, y, height: lane });
        y += lane + 1;
        bands.push({ which, lane: 2, y, height: lane });
        y += lane + 1;
      }
      y += 3;
    });
    bands.push({ which: -1, lane: 3, y, height: memory });
    return { bands, height: y + memory, dense };
  }

  class Painter {
    constructor(data) {
      this.data = data;
      this.theme = theme();
      this.buffer = document.createElement("canvas");
    }

    // `view`: { from, to, width } in ns and pixels; `state`: what is marked.
    device(context, device, shown, view, bands, state) {
      context.clearRect(0, 0, view.width, bands.height);
      for (const band of bands.bands) {
        if (band.which < 0) this.memory(context, device, shown, view, band);
        else this.lane(context, device, shown, view, band, state);
      }
    }

    lane(context, device, shown, view, band, state) {
      const schedule = shown[band.which];
      const { ops } = schedule;
      const [from, to] = schedule.lanes[device][band.lane];
      const x = (t) => ((t - view.from) / (view.to - view.from)) * view.width;
      const end = Math.min(view.width, x(schedule.makespan));
      if (end > 0) {
        context.fillStyle = band.lane === 0 ? this.theme.idle : this.theme.track;
        context.fillRect(Math.max(0, x(0)), band.y, end - Math.max(0, x(0)), band.height);
      }
      const low = first(from, to, (i) => ops.end[i] > view.from);
      const high = first(low, to, (i) => ops.start[i] >= view.to);
      context.globalAlpha = state.critical ? 0.3 : 1;
      if (high - low > view.width / 2) this.columns(context, schedule, low, high, view, band);
      else this.boxes(context, schedule, low, high, x, band, view);
      context.globalAlpha = 1;
      if (state.critical) this.path(context, schedule, low, high, x, band);
      if (state.differences && shown.length === 2 && band.which === 1) {
        this.differences(context, shown, low, high, x, band, view);
      }
      this.marks(context, device, schedule, x, band, state);
    }

    colour(ops, i) {
      return this.data.colours[KINDS[ops.kind[i]]][ops.chunk[i]];
    }

    boxes(context, schedule, low, high, x, band, view) {
      const { ops } = schedule;
      context.font = `${Math.min(12, band.height - 4)}px system-ui, sans-serif`;
      context.textAlign = "center";
      context.textBaseline = "middle";
      for (let i = low; i < high; i++) {
        const [fill, ink] = this.colour(ops, i);
        const left = Math.max(-2, x(ops.start[i]));
        const right = Math.min(view.width + 2, x(ops.end[i]));
        const wide = right - left;
        context.fillStyle = fill;
        context.fillRect(left, band.y, Math.max(0.5, wide > 3 ? wide - 0.7 : wide), band.height);
        if (band.height < 12 || wide < 9) continue;
        const label = String(ops.microbatch[i]);
        if (label.length * 6.6 + 3 > wide) continue;
        context.fillStyle = ink;
        context.fillText(label, (left + right) / 2, band.y + band.height / 2 + 0.5);
      }
    }

    // More ops than pixels: the share of each column's time that each colour takes, stacked.
    columns(context, schedule, low, high, view, band) {
      const { ops } = schedule;
      const step = 2;
      const count = Math.ceil(view.width / step);
      const scale = count / (view.to - view.from);
      const shares = new Map();
      for (let i = low; i < high; i++) {
        const key = ops.kind[i] * 4096 + ops.chunk[i];
        let share = shares.get(key);
        if (!share) shares.set(key, (share = { colour: this.colour(ops, i)[0], of: new Float32Array(count) }));
        const a = Math.max(0, (ops.start[i] - view.from) * scale);
        const b = Math.min(count, (ops.end[i] - view.from) * scale);
        const last = Math.min(count - 1, Math.floor(b));
        for (let column = Math.floor(a); column <= last; column++) {
          share.of[column] += Math.max(0, Math.min(b, column + 1) - Math.max(a, column));
        }
      }
      // As pixels of an image: far fewer calls than a rectangle each.
      const height = 2 * band.height;
      const image = new ImageData(count, height);
      const pixels = new Uint32Array(image.data.buffer);
      const level = new Float32Array(count);
      for (const [, share] of [...shares].sort((a, b) => a[0] - b[0])) {
        const [red, green, blue] = [1, 3, 5].map((at) => parseInt(share.colour.slice(at, at + 2), 16));
        // Little-endian, as every machine with a browser is.
        const pixel = ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
        for (let column = 0; column < count; column++) {
          const foot = Math.round(height * (1 - level[column]));
          level[column] = Math.min(1, level[column] + share.of[column]);
          const top = Math.round(height * (1 - level[column]));
          for (let row = top; row < foot; row++) pixels[row * count + column] = pixel;
        }
      }
      this.buffer.width = count;
      this.buffer.height = height;
      this.buffer.getContext("2d").putImageData(image, 0, 0);
      context.imageSmoothingEnabled = false;
      context.drawImage(this.buffer, 0, band.y, count * step, band.height);
    }

    path(context, schedule, low, high, x, band) {
      const { ops } = schedule;
      for (let i = low; i < high; i++) {
        if (!schedule.path[i]) continue;
        const left = x(ops.start[i]);
        const wide = Math.max(1, x(ops.end[i]) - left);
        context.fillStyle = this.colour(ops, i)[0];
        context.fillRect(left, band.y, wide, band.height);
        context.fillStyle = this.theme.text;
        context.fillRect(left, band.y, wide, 2);
        context.fillRect(left, band.y + band.height - 2, wide, 2);
      }
    }

    // Under the lower schedule's ops: shorter or longer than the upper's by a tenth, or after another op.
    differences(context, shown, low, high, x, band, view) {
      const { ops } = shown[1];
      const kinds = changes(shown);
      const colours = [null, this.theme.text, this.theme.faster, this.theme.slower];
      const height = Math.min(3, band.height / 2);
      const top = band.y + band.height - height;
      if (high - low > view.width / 2) {
        this.differing(context, ops, kinds, low, high, x, colours, top, height, view);
        return;
      }
      for (let i = low; i < high; i++) {
        if (!kinds[i]) continue;
        const left = x(ops.start[i]);
        context.fillStyle = colours[kinds[i]];
        context.fillRect(left, top, Math.max(1, x(ops.end[i]) - left - 0.7), height);
      }
    }

    // More ops than pixels: each column has the colour of what takes most of its time, as strong as its share.
    differing(context, ops, kinds, low, high, x, colours, top, height, view) {
      const count = Math.ceil(view.width);
      const shares = colours.map(() => new Float32Array(count));
      for (let i = low; i < high; i++) {
        if (!kinds[i]) continue;
        const a = Math.max(0, x(ops.start[i]));
        const b = Math.min(count, x(ops.end[i]));
        const last = Math.min(count - 1, Math.floor(b));
        for (let column = Math.floor(a); column <= last; column++) {
          shares[kinds[i]][column] += Math.max(0, Math.min(b, column + 1) - Math.max(a, column));
        }
      }
      for (let column = 0; column < count; column++) {
        const all = shares[1][column] + shares[2][column] + shares[3][column];
        if (all <= 0) continue;
        const most = [3, 2, 1].reduce((best, kind) => (shares[kind][column] > shares[best][column] ? kind : best));
        context.globalAlpha = 0.3 + 0.7 * Math.min(1, all);
        context.fillStyle = colours[most];
        context.fillRect(column, top, 1, height);
      }
      context.globalAlpha = 1;
    }

    // The op looked at, what it waited for, and its counterpart.
    marks(context, device, schedule, x, band, state) {
      for (const { which, op, dashed } of state.marked) {
        const { ops } = schedule;
        if (which !== band.which || ops.device[op] !== device) continue;
        if (Math.max(0, ops.kind[op] - 2) !== band.lane) continue;
        context.strokeStyle = this.theme.text;
        context.lineWidth = 2;
        context.setLineDash(dashed ? [3, 2] : []);
        const left = x(ops.start[op]);
        context.strokeRect(left + 1, band.y + 1, Math.max(1, x(ops.end[op]) - left - 2), band.height - 2);
        context.setLineDash([]);
      }
    }

    // The memory of the upper schedule as an area, that of the lower as a line, and the limit.
    memory(context, device, shown, view, band) {
      const { problem } = shown[0];
      const held = Math.min(...shown.map((s) => s.problem.bytes.static[device]));
      const limit = problem.bytes.capacity[device];
      const peak = Math.max(...shown.map((s) => Math.max(curve(s, device).peak, s.peaks ? s.peaks[device] : 0)));
      const used = Math.max(1, peak - held);
      const room = Math.max(0, limit - held);
      // A limit far above the peak would flatten the curve.
      const above = room / 4 > used;
      const top = held + (above ? 1.25 * used : Math.max(used, room) * 1.1);
      const y = (bytes) => band.y + band.height * (1 - Math.min(1, Math.max(0, (bytes - held) / (top - held))));
      const x = (t) => ((t - view.from) / (view.to - view.from)) * view.width;
      context.fillStyle = this.theme.track;
      context.fillRect(0, band.y, view.width, band.height);
      shown.forEach((schedule, which) => {
        const { times, bytes } = curve(schedule, device);
        const foot = band.y + band.height;
        const begin = Math.max(0, first(0, times.length, (i) => times[i] > view.from) - 1);
        const finish = first(begin, times.length, (i) => times[i] >= view.to);
        context.beginPath();
        let last = -1;
        let most = 0;
        let before = 0;
        context.moveTo(x(times[begin]), which ? y(bytes[begin]) : foot);
        for (let i = begin; i < finish; i++) {
          const at = x(times[i]);
          const column = Math.floor(at);
          // The largest value of a column of pixels is the one that counts.
          if (column === last && bytes[i] <= most) {
            before = at;
            continue;
          }
          most = column === last ? Math.max(most, bytes[i]) : bytes[i];
          if (column !== last && i > begin) {
            context.lineTo(Math.max(before, 0), y(bytes[i - 1]));
            context.lineTo(at, y(bytes[i - 1]));
          }
          before = at;
          context.lineTo(at, y(bytes[i]));
          last = column;
        }
        const right = Math.min(view.width, x(schedule.makespan));
        context.lineTo(right, y(bytes[Math.max(begin, finish - 1)]));
        if (which === 0) {
          context.lineTo(right, foot);
          context.closePath();
          context.fillStyle = this.theme.memory;
          context.fill();
        } else {
          context.strokeStyle = this.theme.line;
          context.lineWidth = 1;
          context.stroke();
        }
        if (schedule.peaks) this.rule(context, y(schedule.peaks[device]), view, this.theme.text, [1.5, 2.5]);
      });
      // Far above the peak it is at the upper edge, with an arrow that says that it is higher.
      this.rule(context, above ? band.y + 1 : y(limit), view, this.theme.limit, [5, 3]);
      if (above) {
        context.fillStyle = this.theme.limit;
        for (let at = 40; at < view.width; at += 240) {
          context.beginPath();
          context.moveTo(at, band.y + 2);
          context.lineTo(at - 4, band.y + 8);
          context.lineTo(at + 4, band.y + 8);
          context.fill();
        }
      }
    }

    rule(context, y, view, colour, dash) {
      context.strokeStyle = colour;
      context.lineWidth = 1.2;
      context.setLineDash(dash);
      context.beginPath();
      context.moveTo(0, y);
      context.lineTo(view.width, y);
      context.stroke();
      context.setLineDash([]);
    }

    axis(context, view, height) {
      context.clearRect(0, 0, view.width, height);
      const span = view.to - view.from;
      const most = Math.max(2, view.width / 90);
      let step = 10 ** Math.floor(Math.log10(span / most));
      step *= [1, 2, 5, 10].find((factor) => span / (step * factor) <= most);
      step = Math.max(1, step);
      context.fillStyle = this.theme.muted;
      context.strokeStyle = this.theme.grid;
      context.font = "12px system-ui, sans-serif";
      context.textAlign = "left";
      context.textBaseline = "alphabetic";
      for (let t = Math.ceil(view.from / step) * step; t < view.to; t += step) {
        const x = ((t - view.from) / span) * view.width;
        context.beginPath();
        context.moveTo(x + 0.5, 4);
        context.lineTo(x + 0.5, height);
        context.stroke();
        if (x + 60 < view.width) context.fillText(tick(t, step, view.to), x + 4, 14);
      }
    }
  }

  // How an op of the lower schedule differs from the upper's; null where it does not.
  function difference(shown, i) {
    const [upper, lower] = shown;
    const { ops } = lower;
    const other = find(upper, ops.kind[i], ops.stage[i], ops.microbatch[i]);
    if (other < 0) return { only: true };
    const length = ops.end[i] - ops.start[i];
    const before = upper.ops.end[other] - upper.ops.start[other];
    if (length > 1.1 * before && length - before > 1) return { longer: length - before, before };
    if (length < 0.9 * before && before - length > 1) return { shorter: before - length, before };
    const lane = (s, op) => s.lanes[s.ops.device[op]][Math.max(0, s.ops.kind[op] - 2)][0];
    const behind = (s, op) => (op > lane(s, op) ? [s.ops.kind[op - 1], s.ops.stage[op - 1], s.ops.microbatch[op - 1]].join() : "");
    return behind(upper, other) === behind(lower, i) ? null : { moved: true };
  }

  // Of every op of the lower schedule how it differs: 0 not, 1 in its place or altogether, 2 shorter, 3 longer.
  function changes(shown) {
    const [upper, lower] = shown;
    if (lower.changes?.from !== upper) {
      const kinds = Uint8Array.from(lower.ops.start, (_, i) => {
        const change = difference(shown, i);
        return !change ? 0 : change.longer ? 3 : change.shorter ? 2 : 1;
      });
      lower.changes = { from: upper, kinds };
    }
    return lower.changes.kinds;
  }

  Object.assign(optpipe, { Painter, theme, layout, difference });
})();
