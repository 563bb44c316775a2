"use strict";
// The page's schedules, unpacked. What the bytes mean stands in pack.rs.
const optpipe = {};

(() => {
  const KINDS = ["F", "B", "W", "O", "R"];
  const CAUSES = ["nothing", "queue", "data", "reload", "memory"];
  const [QUEUE, DATA, RELOAD, MEMORY] = [1, 2, 3, 4];

  class Reader {
    constructor(base64) {
      const text = atob(base64);
      this.bytes = Uint8Array.from(text, (c) => c.charCodeAt(0));
      this.at = 0;
    }
    get done() {
      return this.at >= this.bytes.length;
    }
    unsigned() {
      // Not by shifts, which have 32 bits.
      let value = 0;
      for (let factor = 1; ; factor *= 128) {
        const byte = this.bytes[this.at++];
        value += (byte & 127) * factor;
        if (byte < 128) return value;
      }
    }
    signed() {
      const value = this.unsigned();
      return value % 2 ? -(value + 1) / 2 : value / 2;
    }
  }

  const LENGTHS = { F: "forward", B: "backward_input", W: "backward_weight", O: "offload", R: "reload" };

  // One schedule: its ops as columns of numbers, and for each device the range of its compute, offloads, reloads.
  function unpack(schedule, problem) {
    const { packed } = schedule;
    const { chunks } = problem;
    const n = packed.ops;
    const ops = {
      start: new Float64Array(n), end: new Float64Array(n), kind: new Uint8Array(n), stage: new Uint32Array(n),
      microbatch: new Uint32Array(n), device: new Uint32Array(n), chunk: new Uint32Array(n), cause: new Uint8Array(n), on: new Int32Array(n).fill(-1),
    };
    const stages = Array.from({ length: problem.devices }, () => []);
    problem.placement.forEach((device, stage) => { stages[device][chunks[stage]] = stage; });
    const most = Math.max(0, ...chunks) + 1;
    const reader = new Reader(packed.data);
    const unit = packed.unit_ns;
    const lanes = [];
    let i = 0;
    for (let device = 0; device < problem.devices; device++) {
      const own = [];
      for (let lane = 0; lane < 3; lane++) {
        const first = i;
        const last = new Int32Array(3 * most).fill(-1);
        let end = 0;
        for (let left = reader.unsigned(); left > 0; left--, i++) {
          const head = reader.unsigned();
          const group = Math.floor(head / 8);
          const kind = lane === 0 ? Math.floor(group / most) : lane + 2;
          const stage = stages[device][group % most];
          const microbatch = last[group] + 1 + (head & 4 ? reader.signed() : 0);
          last[group] = microbatch;
          const start = end + (head & 2 ? reader.signed() : 0);
          // Rounded as pack.rs does.
          const predicted = problem.time_ns[LENGTHS[KINDS[kind]]][stage];
          end = start + Math.floor((predicted + Math.floor(unit / 2)) / unit) + (packed.measured ? reader.signed() : 0);
          ops.start[i] = start * unit;
          ops.end[i] = end * unit;
          ops.kind[i] = kind;
          ops.stage[i] = stage;
          ops.microbatch[i] = microbatch;
          ops.device[i] = device;
          ops.chunk[i] = group % most;
          ops.cause[i] = head & 1 ? reader.unsigned() : QUEUE;
          if (!(head & 1)) ops.on[i] = i - 1;
          else if (ops.cause[i] === QUEUE || ops.cause[i] === MEMORY) ops.on[i] = i + reader.signed();
        }
        own.push([first, i]);
      }
      lanes.push(own);
    }
    const path = new Uint8Array(n);
    const steps = new Reader(packed.path);
    for (let at = 0; !steps.done;) {
      at += steps.signed();
      path[at] = 1;
    }
    const unpacked = {
      name: schedule.name, problem, ops, lanes, path, count: n, makespan: packed.makespan_ns, measured: packed.measured,
      // Rounded ops that follow one another may seem to overlap.
      grain: Math.max(schedule.grain_ns, unit > 1 ? 8 * unit : 0), bubble: schedule.bubble, busy: schedule.busy_ns, peaks: schedule.measured_peaks, curves: [], places: null,
      copies: lanes.some(([, o, r]) => o[1] > o[0] || r[1] > r[0]),
    };
    for (let i = 0; i < n; i++) {
      if (ops.cause[i] === DATA) ops.on[i] = find(unpacked, ...needed(problem, KINDS[ops.kind[i]], ops.stage[i]), ops.microbatch[i]);
      if (ops.cause[i] === RELOAD) ops.on[i] = find(unpacked, KINDS.indexOf("R"), ops.stage[i], ops.microbatch[i]);
    }
    return unpacked;
  }

  // Kind and stage of the op whose result an op needs.
  function needed(problem, kind, stage) {
    const [of, from] = {
      F: ["F", stage - 1],
      B: stage + 1 < problem.placement.length ? [problem.split_backward ? "B" : "W", stage + 1] : ["F", stage],
      W: ["B", stage],
      O: ["F", stage],
      R: ["O", stage],
    }[kind];
    return [KINDS.indexOf(of), from];
  }

  // The ops of a schedule by what they are.
  function find(schedule, kind, stage, microbatch) {
    const { ops, problem } = schedule;
    const key = (k, s, m) => (k * problem.placement.length + s) * problem.microbatches + m;
    if (!schedule.places) {
      schedule.places = new Int32Array(5 * problem.placement.length * problem.microbatches).fill(-1);
      for (let i = 0; i < schedule.count; i++) schedule.places[key(ops.kind[i], ops.stage[i], ops.microbatch[i])] = i;
    }
    const at = key(kind, stage, microbatch);
    return at < schedule.places.length ? schedule.places[at] : -1;
  }

  // What a device holds over time, as memory.rs has it: the rules are those of the problem.
  function curve(schedule, device) {
    if (schedule.curves[device]) return schedule.curves[device];
    const { ops, problem } = schedule;
    const { activation, weight_context: context, offloadable } = problem.bytes;
    const freed = (i) => Math.max(ops.start[i], ops.end[i] - schedule.grain);
    const changes = [];
    for (const [from, to] of schedule.lanes[device]) {
      for (let i = from; i < to; i++) {
        const s = ops.stage[i];
        switch (KINDS[ops.kind[i]]) {
          case "F": changes.push([ops.start[i], activation[s]]); break;
          case "B": changes.push([freed(i), context[s] - activation[s]]); break;
          case "W": changes.push([freed(i), -context[s]]); break;
          case "O": changes.push([freed(i), -offloadable[s]]); break;
          case "R": changes.push([ops.start[i], offloadable[s]]); break;
        }
      }
    }
    changes.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    const times = [0];
    const bytes = [problem.bytes.static[device]];
    let held = bytes[0];
    for (const [time, change] of changes) {
      held += change;
      if (time - times[times.length - 1] > schedule.grain) {
        times.push(time);
        bytes.push(held);
      } else {
        bytes[bytes.length - 1] = held;
      }
    }
    const peak = bytes.reduce((a, b) => Math.max(a, b), 0);
    return (schedule.curves[device] = { times, bytes, peak });
  }

  // The first place from `from` to `to` where `test` holds; it holds from there on.
  function first(from, to, test) {
    while (from < to) {
      const middle = (from + to) >> 1;
      if (test(middle)) to = middle;
      else from = middle + 1;
    }
    return from;
  }

  // A number with so many significant digits, at least those before the point.
  function digits(value, count) {
    const before = Math.abs(value) < 1 ? 1 : Math.floor(Math.log10(Math.abs(value))) + 1;
    return value.toFixed(Math.max(0, count - before));
  }
  function time(ns) {
    const size = Math.abs(ns);
    const [unit, name] = size < 1e3 ? [1, "ns"] : size < 1e6 ? [1e3, "µs"] : size < 1e9 ? [1e6, "ms"] : [1e9, "s"];
    return `${unit === 1 ? Math.round(ns) : digits(ns / unit, 4)} ${name}`;
  }
  // The times of an axis: one unit, as many digits as the steps need.
  function tick(ns, step, end) {
    const [unit, name] = end < 1e3 ? [1, "ns"] : end < 1e6 ? [1e3, "µs"] : end < 1e9 ? [1e6, "ms"] : [1e9, "s"];
    return ns === 0 ? "0" : `${(ns / unit).toFixed(Math.max(0, -Math.floor(Math.log10(step / unit) + 1e-9)))} ${name}`;
  }
  function size(bytes) {
    let value = bytes;
    for (const name of ["B", "KiB", "MiB", "GiB", "TiB"]) {
      if (Math.abs(value) < 1024 || name === "TiB") return `${name === "B" ? value : digits(value, 3)} ${name}`;
      value /= 1024;
    }
    return "";
  }

  function load() {
    const data = JSON.parse(document.getElementById("data").textContent);
    const schedules = data.schedules.map((schedule) => {
      let unpacked;
      // Not before it is looked at.
      return { name: schedule.name, get: () => (unpacked ??= unpack(schedule, data.problems[schedule.problem])) };
    });
    return { colours: data.colours, schedules };
  }

  Object.assign(optpipe, { KINDS, CAUSES, LENGTHS, load, find, curve, first, time, tick, size });
})();
