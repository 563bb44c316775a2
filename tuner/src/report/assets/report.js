// The timeline to explore: two schedules under each other, device by device.
(() => {
  const { KINDS, CAUSES, LENGTHS, Painter, theme, layout, difference, load, find, curve, first, time, size } = optpipe;
  const element = (id) => document.getElementById(id);
  const NAMES = { F: "forward", B: "backward_input", W: "backward_weight", O: "offload", R: "reload" };
  // Pixels between a pointer's ends that are no drag yet.
  const STILL = 4;

  const data = load();
  const painter = new Painter(data);
  const rows = element("rows");
  const state = { upper: 0, lower: Math.min(1, data.schedules.length - 1), critical: false, differences: true, marked: [], selected: null };
  let shown = [];
  let bands = null;
  let view = { from: 0, to: 1, width: 1 };
  let canvases = [];
  const visible = new Set();
  let axis = null;
  let scheduled = false;

  function show() {
    shown = [data.schedules[state.upper].get()];
    if (state.lower >= 0) shown.push(data.schedules[state.lower].get());
    state.selected = null;
    state.marked = [];
    bands = layout(shown, shown[0].problem.devices);
    build();
    legend();
    fit();
  }

  const longest = () => Math.max(...shown.map((schedule) => schedule.makespan), 1);

  function fit() {
    view.from = 0;
    view.to = longest() * 1.002;
    redraw();
  }

  // One row a device: its names, and a canvas.
  function build() {
    rows.replaceChildren();
    canvases = [];
    visible.clear();
    const head = document.createElement("div");
    head.className = "row axis";
    axis = document.createElement("canvas");
    head.append(document.createElement("div"), axis);
    rows.append(head);
    const { problem } = shown[0];
    for (let device = 0; device < problem.devices; device++) {
      const row = document.createElement("div");
      row.className = "row";
      const names = document.createElement("div");
      names.className = "names";
      const line = (y, text, kind, which) => {
        const span = document.createElement("span");
        span.className = kind;
        span.textContent = text;
        span.style.top = `${y}px`;
        if (which !== undefined) span.dataset.which = which;
        names.append(span);
      };
      const stages = problem.placement.flatMap((d, stage) => (d === device ? [stage] : []));
      const held = stages.length === 0 ? "no stage" : `stage${stages.length > 1 ? "s" : ""} ${stages.join(", ")}`;
      line(-3, `device ${device} · ${held}`, "device");
      shown.forEach((schedule, which) => {
        const peak = schedule.peaks ? schedule.peaks[device] : curve(schedule, device).peak;
        const busy = (100 * schedule.busy[device]) / Math.max(1, schedule.makespan);
        const { y } = bands.bands.find((band) => band.which === which);
        const over = peak > problem.bytes.capacity[device] ? "over" : "muted";
        line(which ? y : 13, `${busy.toFixed(1)} % busy, peak ${size(peak)}`, over, which);
      });
      line(bands.bands.at(-1).y, `limit ${size(problem.bytes.capacity[device])}`, "muted");
      const canvas = document.createElement("canvas");
      canvas.dataset.device = device;
      canvas.style.height = `${bands.height}px`;
      row.append(names, canvas);
      rows.append(row);
      canvases.push(canvas);
      watcher.observe(canvas);
    }
    measure();
  }

  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) visible.add(target);
      else visible.delete(target);
    }
    redraw();
  }, { rootMargin: "200px" });

  function measure() {
    const width = Math.max(50, Math.floor(axis.clientWidth));
    if (width !== view.width) view.width = width;
    redraw();
  }

  function redraw() {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      const begun = performance.now();
      paint(axis, 22, (context) => painter.axis(context, view, 22));
      for (const canvas of visible) {
        if (!canvas.isConnected) continue;
        const device = Number(canvas.dataset.device);
        paint(canvas, bands.height, (context) => painter.device(context, device, shown, view, bands, state));
      }
      optpipe.frame_ms = performance.now() - begun;
      optpipe.frames = (optpipe.frames ?? 0) + 1;
    });
  }

  function paint(canvas, height, draw) {
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [Math.round(view.width * ratio), Math.round(height * ratio)];
    if (canvas.width !== w || canvas.height !== h) {
      canvas.width = w;
      canvas.height = h;
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    draw(context);
  }

  // Moves and scales the view, inside of the steps shown.
  function look(from, span) {
    const most = longest() * 1.002;
    span = Math.min(most, Math.max(span, Math.min(most, 20)));
    view.from = Math.max(0, Math.min(from, most - span));
    view.to = view.from + span;
    redraw();
  }
  function zoom(factor, at = 0.5) {
    const span = view.to - view.from;
    const center = view.from + at * span;
    look(center - at * span * factor, span * factor);
  }
  const pan = (share) => look(view.from + share * (view.to - view.from), view.to - view.from);

  // What stands at a place of a device's canvas: an op, or the memory at a time.
  function hit(canvas, x, y) {
    const device = Number(canvas.dataset.device);
    const t = view.from + (x / view.width) * (view.to - view.from);
    const band = bands.bands.find((b) => y >= b.y - 1 && y < b.y + b.height + 1);
    if (!band) return null;
    if (band.which < 0) return { device, memory: t };
    const schedule = shown[band.which];
    const { ops } = schedule;
    const [from, to] = schedule.lanes[device][band.lane];
    const near = (2 * (view.to - view.from)) / view.width;
    const i = first(from, to, (k) => ops.end[k] > t - near);
    if (i >= to || ops.start[i] > t + near) return null;
    // Of two in reach the one that is there.
    const next = i + 1 < to && ops.end[i] <= t && ops.start[i + 1] <= t ? i + 1 : i;
    return { which: band.which, op: next };
  }

  const letter = (ops, i) => KINDS[ops.kind[i]];
  const named = (ops, i) => `${letter(ops, i)} s${ops.stage[i]} m${ops.microbatch[i]}`;

  // All that is known of an op, a line each.
  function describe(which, i) {
    const schedule = shown[which];
    const { ops, problem } = schedule;
    const kind = letter(ops, i);
    const stage = ops.stage[i];
    const { activation, weight_context: context, offloadable } = problem.bytes;
    const bytes = {
      F: `takes ${size(activation[stage])}`,
      B: `frees ${size(activation[stage] - context[stage])}`,
      W: `frees ${size(context[stage])}`,
      O: `copies ${size(offloadable[stage])} to the host and frees it`,
      R: `takes ${size(offloadable[stage])} and copies it back`,
    }[kind];
    const lines = [
      `${named(ops, i)}: ${NAMES[kind]} of stage ${stage}, microbatch ${ops.microbatch[i]}, device ${ops.device[i]}`,
      `${schedule.name}: ${time(ops.start[i])} to ${time(ops.end[i])}, ${time(ops.end[i] - ops.start[i])}; ${bytes}`,
      waited(schedule, i),
    ];
    if (shown.length === 2) {
      const other = shown[1 - which];
      const same = find(other, ops.kind[i], stage, ops.microbatch[i]);
      if (same < 0) {
        lines.push(`${other.name}: has no such op`);
      } else {
        const o = other.ops;
        lines.push(`${other.name}: ${time(o.start[same])} to ${time(o.end[same])}, ${time(o.end[same] - o.start[same])}`);
      }
      const change = which === 1 && state.differences ? difference(shown, i) : null;
      if (change?.moved) lines.push("Runs after another op than above");
    }
    if (schedule.path[i]) lines.push("On the critical path");
    return lines;
  }

  function waited(schedule, i) {
    const { ops, problem } = schedule;
    const on = ops.on[i];
    const cause = CAUSES[ops.cause[i]];
    if (on < 0) return cause === "nothing" ? "Waited for nothing" : "First of its queue";
    const what = {
      queue: ops.kind[i] < 3 ? "which ran before it on the device" : "which was copied before it on the channel",
      data: "whose result it needs",
      reload: "which brings its activations back",
      memory: "which freed the memory it takes",
    }[cause];
    let lag = 0;
    if (cause === "data" && ops.device[on] !== ops.device[i]) {
      const kind = letter(ops, i);
      if (kind === "F") lag = problem.time_ns.send_forward[ops.stage[i] - 1];
      if (kind === "B") lag = problem.time_ns.send_backward[ops.stage[i]];
    }
    const late = ops.start[i] - ops.end[on] - lag;
    const sent = lag > 0 ? `, ${time(lag)} on the way` : "";
    const slack = late > 1e-3 * schedule.makespan ? `; started ${time(late)} after that` : "";
    return `Waited for ${named(ops, on)} on device ${ops.device[on]}, ${what}${sent}${slack}`;
  }

  function held(device, t) {
    return shown.map((schedule) => {
      const { times, bytes } = curve(schedule, device);
      const at = first(0, times.length, (i) => times[i] > t) - 1;
      return `${schedule.name}: device ${device} holds ${size(bytes[Math.max(0, at)])} at ${time(Math.max(0, t))}, ` +
        `limit ${size(schedule.problem.bytes.capacity[device])}`;
    });
  }

  // Marks an op, what it waited for, and its counterpart.
  function mark(which, i) {
    const { ops } = shown[which];
    state.marked = [{ which, op: i }];
    if (ops.on[i] >= 0) state.marked.push({ which, op: ops.on[i], dashed: true });
    if (shown.length === 2) {
      const same = find(shown[1 - which], ops.kind[i], ops.stage[i], ops.microbatch[i]);
      if (same >= 0) state.marked.push({ which: 1 - which, op: same, dashed: true });
    }
  }

  function tip(lines, event) {
    const box = element("tip");
    box.hidden = !lines;
    if (!lines) return;
    box.replaceChildren(...lines.map((line) => Object.assign(document.createElement("div"), { textContent: line })));
    const { width, height } = box.getBoundingClientRect();
    const left = Math.min(event.clientX + 14, document.documentElement.clientWidth - width - 8);
    const below = event.clientY + 18 + height < window.innerHeight;
    box.style.left = `${Math.max(8, left)}px`;
    box.style.top = `${below ? event.clientY + 18 : event.clientY - height - 12}px`;
  }

  function hover(event) {
    const found = event.target.dataset?.device ? hit(event.target, event.offsetX, event.offsetY) : null;
    if (!found) {
      if (!state.selected) state.marked = [];
      tip(null);
    } else if (found.memory !== undefined) {
      tip(held(found.device, found.memory), event);
    } else {
      mark(found.which, found.op);
      tip(describe(found.which, found.op), event);
    }
    redraw();
  }

  // Selecting says aloud what hovering shows, and keeps it.
  function select(which, i) {
    state.selected = { which, op: i };
    mark(which, i);
    element("said").textContent = describe(which, i).join(". ");
    const { ops } = shown[which];
    const span = view.to - view.from;
    if (ops.start[i] < view.from || ops.end[i] > view.to) look((ops.start[i] + ops.end[i] - span) / 2, span);
    canvases[ops.device[i]].scrollIntoView({ block: "nearest" });
    redraw();
  }
  function deselect() {
    state.selected = null;
    state.marked = [];
    element("said").textContent = "";
    tip(null);
    redraw();
  }

  // From an op to its neighbours: along the lane, or to the lane above or below at the same time.
  function step(along, across) {
    if (!state.selected) {
      const begin = shown[0].lanes.findIndex(([[from, to]]) => to > from);
      const [from, to] = shown[0].lanes[begin][0];
      select(0, Math.min(to - 1, first(from, to, (i) => shown[0].ops.end[i] > view.from)));
      return;
    }
    const { which, op } = state.selected;
    const { ops, lanes } = shown[which];
    const device = ops.device[op];
    const lane = Math.max(0, ops.kind[op] - 2);
    if (along) {
      const [from, to] = lanes[device][lane];
      select(which, Math.min(to - 1, Math.max(from, op + along)));
      return;
    }
    const all = lanes.flatMap((_, d) => bands.bands.filter((b) => b.which >= 0).map((b) => ({ device: d, ...b })));
    let at = all.findIndex((b) => b.device === device && b.which === which && b.lane === lane);
    const middle = (ops.start[op] + ops.end[op]) / 2;
    for (at += across; at >= 0 && at < all.length; at += across) {
      const next = all[at];
      const other = shown[next.which];
      const [from, to] = other.lanes[next.device][next.lane];
      if (to > from) {
        select(next.which, Math.min(to - 1, first(from, to, (i) => other.ops.end[i] > middle)));
        return;
      }
    }
  }

  const keys = {
    "+": () => zoom(0.7), "=": () => zoom(0.7), "-": () => zoom(1 / 0.7), "0": fit,
    a: () => pan(-0.2), d: () => pan(0.2), c: toggleCritical, Escape: deselect,
    ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0), ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1),
    w: () => {
      const { selected } = state;
      if (selected && shown[selected.which].ops.on[selected.op] >= 0) select(selected.which, shown[selected.which].ops.on[selected.op]);
    },
  };
  rows.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });

  function place(event) {
    const box = axis.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  }
  rows.addEventListener("wheel", (event) => {
    const sideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
    if (event.ctrlKey || event.metaKey || (!sideways && document.activeElement === rows)) {
      event.preventDefault();
      zoom(Math.exp(Math.max(-1, Math.min(1, event.deltaY / 300))), place(event));
    } else if (sideways) {
      event.preventDefault();
      pan((event.shiftKey && !event.deltaX ? event.deltaY : event.deltaX) / view.width);
    }
  }, { passive: false });

  // One pointer pans, two zoom.
  const pointers = new Map();
  let gesture = null;
  function grip() {
    const all = [...pointers.values()];
    const xs = all.map((event) => place(event));
    gesture = all.length === 0 ? null : { from: view.from, span: view.to - view.from, xs, begun: all[0], moved: gesture?.moved };
  }
  rows.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !event.target.dataset?.device) return;
    pointers.set(event.pointerId, event);
    gesture = pointers.size === 1 ? null : gesture;
    grip();
    event.target.setPointerCapture(event.pointerId);
  });
  rows.addEventListener("pointermove", (event) => {
    if (!pointers.has(event.pointerId)) {
      hover(event);
      return;
    }
    pointers.set(event.pointerId, event);
    const xs = [...pointers.values()].map((p) => place(p));
    if (Math.abs(event.clientX - gesture.begun.clientX) > STILL) gesture.moved = true;
    if (!gesture.moved) return;
    tip(null);
    const [a, b] = gesture.xs;
    const at = (share) => gesture.from + share * gesture.span;
    if (xs.length === 1) {
      look(gesture.from + (a - xs[0]) * gesture.span, gesture.span);
    } else {
      const span = (at(b) - at(a)) / (Math.abs(xs[1] - xs[0]) < 1e-3 ? 1e-3 : xs[1] - xs[0]);
      if (span > 0) look(at(a) - xs[0] * span, span);
    }
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    rows.addEventListener(kind, (event) => {
      if (!pointers.delete(event.pointerId)) return;
      const still = !gesture?.moved && kind === "pointerup" && pointers.size === 0;
      grip();
      if (!still) return;
      const found = hit(event.target, event.offsetX, event.offsetY);
      if (found?.op !== undefined) select(found.which, found.op);
      else deselect();
    });
  }
  rows.addEventListener("pointerleave", () => {
    if (!state.selected) state.marked = [];
    tip(null);
    redraw();
  });

  function toggle(id, name) {
    state[name] = !state[name];
    element(id).setAttribute("aria-pressed", String(state[name]));
    legend();
    redraw();
  }
  function toggleCritical() {
    toggle("critical", "critical");
  }
  element("zoom-in").addEventListener("click", () => zoom(0.7));
  element("zoom-out").addEventListener("click", () => zoom(1 / 0.7));
  element("fit").addEventListener("click", fit);
  element("critical").addEventListener("click", toggleCritical);
  element("differences").addEventListener("click", () => toggle("differences", "differences"));

  function legend() {
    const item = (kind, text, fill) => {
      const li = document.createElement("li");
      const swatch = document.createElement("span");
      swatch.className = `swatch ${kind}`;
      if (fill) swatch.style.background = fill;
      li.append(swatch, text);
      return li;
    };
    const kinds = KINDS.filter((kind) => "FBW".includes(kind) || shown.some((schedule) => schedule.copies));
    const items = kinds.map((kind) => item("", LENGTHS[kind], data.colours[kind][0][0]));
    items.push(item("idle", "idle"), item("memory", shown.length > 1 ? "memory, upper" : "memory"));
    if (shown.length > 1) items.push(item("line", "memory, lower"));
    items.push(item("limit", "memory limit"));
    if (shown.some((schedule) => schedule.peaks)) items.push(item("peak", "measured peak"));
    if (shown.length > 1 && state.differences) {
      items.push(item("slower", "over 10 % longer than above"), item("faster", "shorter"), item("moved", "after another op"));
    }
    if (shown.some((schedule) => Math.max(...schedule.problem.chunks) > 0)) items.push(item("none", "lighter: later stages of a device"));
    element("legend").replaceChildren(...items);
  }

  function choices() {
    const option = (text, value) => Object.assign(document.createElement("option"), { textContent: text, value });
    for (const [id, more] of [["upper", []], ["lower", [option("none", -1)]]]) {
      const select = element(id);
      select.append(...data.schedules.map((schedule, i) => option(schedule.name, i)), ...more);
      select.value = String(state[id]);
      select.addEventListener("change", () => {
        state[id] = Number(select.value);
        show();
      });
    }
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    painter.theme = theme();
    redraw();
  });
  choices();
  element("timeline").hidden = false;
  show();
  new ResizeObserver(measure).observe(rows);
  // Last: had anything failed, the picture would stay.
  document.documentElement.classList.add("scripted");
  Object.assign(optpipe, { state, view, shown: () => shown, bands: () => bands });
})();
