//! The page in a browser: what the script unpacks, and everything that one can do with it.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::super::pack::EXACT;
use super::chromium::Browser;
use super::*;
use crate::analysis::{OpPlace, waits};
use crate::export::bars::Bars;
use crate::export::memory::{memory_curves, peak};

/// What the script unpacked of the schedule of a number: its ops as lists, and the peak of each device.
const UNPACKED: &str = "((i) => {
    document.getElementById('upper').value = i;
    document.getElementById('upper').dispatchEvent(new Event('change'));
    const s = optpipe.shown()[0];
    const o = s.ops;
    const ops = Array.from(o.start, (start, k) =>
        [start, o.end[k], o.kind[k], o.stage[k], o.microbatch[k], o.device[k], o.cause[k], o.on[k], s.path[k]]);
    return { name: s.name, ops, peaks: s.lanes.map((_, d) => optpipe.curve(s, d).peak) };
})";

/// What the script ought to have.
fn expected(problem: &Problem, bars: &Bars) -> (Vec<Vec<i64>>, Vec<i64>) {
    let waits = waits(problem, bars);
    let path = waits.critical_path(bars);
    let mut places = Vec::new();
    for (device, ops) in bars.devices.iter().enumerate() {
        let of = |wanted: &dyn Fn(usize) -> bool| {
            (0..ops.len()).filter(|&i| wanted(i)).map(|index| OpPlace { device, index }).collect::<Vec<_>>()
        };
        places.extend(of(&|i| ops[i].kind.is_compute()));
        places.extend(of(&|i| ops[i].kind == optpipe_solver::schedule::OpKind::O));
        places.extend(of(&|i| ops[i].kind == optpipe_solver::schedule::OpKind::R));
    }
    let numbers: HashMap<OpPlace, i64> = places.iter().copied().zip(0..).collect();
    let path: HashSet<OpPlace> = path.into_iter().collect();
    let ops = places.iter().map(|&place| {
        let bar = bars.devices[place.device][place.index];
        let wait = waits.at(place);
        vec![
            bar.start,
            bar.end,
            bar.kind as i64,
            bar.stage as i64,
            bar.microbatch as i64,
            place.device as i64,
            wait.cause as i64,
            wait.on.map_or(-1, |on| numbers[&on]),
            i64::from(path.contains(&place)),
        ]
    });
    (ops.collect(), memory_curves(problem, bars).iter().map(peak).collect())
}

#[test]
fn the_script_unpacks_what_was_packed() {
    let Some(mut browser) = Browser::start() else { return };
    // The last has more ops than have exact times.
    for (devices, chunks, microbatches) in [(4, 1, 8), (2, 2, 5), (3, 3, 4), (16, 2, 220)] {
        let problem = problem(devices, chunks, microbatches);
        let run = run(&problem, "a model");
        browser.open(&html(&run).unwrap(), 1200, 900);
        for (i, shown) in super::super::shown::all(&run).unwrap().iter().enumerate() {
            let found = browser.js(&format!("{UNPACKED}({i})"));
            assert_eq!(found["name"], json!(shown.name));
            let (ops, peaks) = expected(&problem, &shown.bars);
            let found_ops: Vec<Vec<i64>> = serde_json::from_value(found["ops"].clone()).unwrap();
            assert_eq!(found_ops.len(), ops.len());
            let exact = shown.bars.len() <= EXACT;
            let rounded = if exact { 0 } else { shown.bars.makespan >> 17 };
            for (found, wanted) in found_ops.iter().zip(&ops) {
                assert_eq!(found[2..], wanted[2..], "{}", shown.name);
                for (found, wanted) in found[..2].iter().zip(&wanted[..2]) {
                    assert!((found - wanted).abs() <= rounded, "{}: {found} for {wanted}", shown.name);
                }
            }
            if !shown.is_measured() {
                let found: Vec<i64> = serde_json::from_value(found["peaks"].clone()).unwrap();
                for (found, peak) in found.iter().zip(&peaks) {
                    // Between rounded ends and starts no peak is made up.
                    assert!(found <= peak && (!exact || found == peak), "{}: {found} for {peak}", shown.name);
                    assert!(*found as f64 >= 0.9 * *peak as f64, "{}: {found} for {peak}", shown.name);
                }
            }
        }
        assert_eq!(browser.complaints(), Vec::<String>::new());
    }
}

/// The middle of an op of a schedule (0 upper, 1 lower) in the window.
fn middle_of(browser: &mut Browser, which: usize, op: usize) -> (f64, f64) {
    let at = browser.js(&format!(
        "(() => {{
            const o = optpipe.shown()[{which}].ops;
            const canvas = document.querySelectorAll('#rows canvas')[o.device[{op}] + 1];
            canvas.scrollIntoView({{ block: 'center' }});
            const lane = Math.max(0, o.kind[{op}] - 2);
            const band = optpipe.bands().bands.find((b) => b.which === {which} && b.lane === lane);
            const box = canvas.getBoundingClientRect();
            const v = optpipe.view;
            const share = ((o.start[{op}] + o.end[{op}]) / 2 - v.from) / (v.to - v.from);
            return [box.left + share * box.width, box.top + band.y + band.height / 2];
        }})()"
    ));
    (at[0].as_f64().unwrap(), at[1].as_f64().unwrap())
}

fn span(browser: &mut Browser) -> f64 {
    browser.js("optpipe.view.to - optpipe.view.from").as_f64().unwrap()
}

fn text(browser: &mut Browser, id: &str) -> String {
    browser.js(&format!("document.getElementById('{id}').textContent")).as_str().unwrap().to_owned()
}

/// The pictures of all devices, as text.
fn pixels(browser: &mut Browser) -> Value {
    browser.frame();
    browser.js("Array.from(document.querySelectorAll('#rows canvas'), (c) => c.toDataURL()).join()")
}

#[test]
fn the_timeline_can_be_explored_by_mouse_keys_and_touch() {
    let Some(mut browser) = Browser::start() else { return };
    let run = run(&problem(4, 1, 8), "a model");
    browser.open(&html(&run).unwrap(), 1200, 900);
    let b = &mut browser;
    assert_eq!(b.js("getComputedStyle(document.getElementById('picture')).display"), json!("none"));
    assert_eq!(b.js("document.getElementById('timeline').hidden"), json!(false));
    b.frame();
    b.picture("light");

    // Zoom: the wheel with Ctrl anywhere, without it after a click; what is under the pointer stays there.
    let all = span(b);
    let at = middle_of(b, 0, 5);
    let under = "optpipe.view.from + 0.25 * (optpipe.view.to - optpipe.view.from)";
    let scrolled = b.js("window.scrollY");
    b.mouse("mouseWheel", at, json!({"deltaX": 0, "deltaY": -200, "modifiers": 2}));
    let zoomed = span(b);
    assert!(zoomed < 0.6 * all, "{zoomed} of {all}");
    assert_eq!(b.js("window.scrollY"), scrolled, "the page stays");
    assert!(b.js(under).as_f64().unwrap() >= 0.0);
    let again = middle_of(b, 0, 5);
    assert!((again.0 - at.0).abs() < 2.0, "{at:?} {again:?}");

    // Drag: what was taken stays under the pointer.
    let from = b.js("optpipe.view.from").as_f64().unwrap();
    b.mouse("mousePressed", again, json!({"button": "left", "buttons": 1, "clickCount": 1}));
    b.mouse("mouseMoved", (again.0 - 60.0, again.1), json!({"button": "left", "buttons": 1}));
    b.mouse("mouseReleased", (again.0 - 60.0, again.1), json!({"button": "left", "clickCount": 1}));
    assert!(b.js("optpipe.view.from").as_f64().unwrap() > from);
    let dragged = middle_of(b, 0, 5);
    assert!((again.0 - 60.0 - dragged.0).abs() < 2.0, "{again:?} {dragged:?}");

    // Hover: op, times, bytes, what it waited for; then nothing.
    b.js("document.getElementById('fit').click()");
    let at = middle_of(b, 1, 9);
    b.mouse("mouseMoved", at, json!({}));
    let tip = text(b, "tip");
    let name = b.js("(() => { const o = optpipe.shown()[1].ops; return `${optpipe.KINDS[o.kind[9]]} s${o.stage[9]} m${o.microbatch[9]}`; })()");
    for words in
        [name.as_str().unwrap(), "device 0", "OptPipe, measured: ", " to ", "GiB", "Waited for", "OptPipe, predicted: "]
    {
        assert!(tip.contains(words), "{words} in {tip}");
    }
    assert_eq!(b.js("document.getElementById('tip').hidden"), json!(false));
    b.picture("hover");
    b.mouse("mouseMoved", (5.0, 5.0), json!({}));
    assert_eq!(b.js("document.getElementById('tip').hidden"), json!(true));

    // A click selects and gives the wheel and the keys to the timeline.
    let at = middle_of(b, 0, 3);
    b.mouse("mousePressed", at, json!({"button": "left", "buttons": 1, "clickCount": 1}));
    b.mouse("mouseReleased", at, json!({"button": "left", "clickCount": 1}));
    let said = text(b, "said");
    assert!(said.contains("device 0") && said.contains("Waited for"), "{said}");
    assert_eq!(b.js("optpipe.state.selected"), json!({"which": 0, "op": 3}));
    assert_eq!(b.js("document.activeElement.id"), json!("rows"));
    let before = span(b);
    b.mouse("mouseWheel", at, json!({"deltaX": 0, "deltaY": -100}));
    assert!(span(b) < before);
    b.key("ArrowRight");
    assert_eq!(b.js("optpipe.state.selected"), json!({"which": 0, "op": 4}));
    assert_ne!(text(b, "said"), said, "it is announced");
    b.key("w");
    assert_eq!(b.js("optpipe.state.selected.op"), b.js("optpipe.shown()[0].ops.on[4]"));
    b.key("ArrowDown");
    assert_ne!(b.js("optpipe.state.selected.op"), b.js("optpipe.shown()[0].ops.on[4]"));
    b.key("0");
    let all = span(b);
    b.key("+");
    assert!(span(b) < all);
    b.key("-");
    assert!((span(b) - all).abs() < 1.0);
    b.key("Escape");
    assert_eq!(text(b, "said"), "");

    // The critical path, on demand.
    let plain = pixels(b);
    b.key("c");
    assert_eq!(b.js("document.getElementById('critical').ariaPressed"), json!("true"));
    assert!(pixels(b) != plain);
    b.picture("critical");
    b.key("c");
    assert!(pixels(b) == plain);
    b.js("document.getElementById('differences').click()");
    assert!(pixels(b) != plain, "differences are marked");

    // Any two beside each other, or one alone.
    let names = b.js("Array.from(document.getElementById('lower').options, (o) => o.textContent)");
    let names: Vec<String> = serde_json::from_value(names).unwrap();
    let place = names.iter().position(|name| name == "1F1B, predicted").unwrap();
    let choose = |b: &mut Browser, value: i64| {
        b.js(&format!(
            "(() => {{ const s = document.getElementById('lower'); s.value = {value}; s.dispatchEvent(new Event('change')); }})()"
        ));
        b.frame();
    };
    choose(b, place as i64);
    assert_eq!(b.js("optpipe.shown()[1].name"), json!("1F1B, predicted"));
    assert!(names.iter().any(|name| name.starts_with("round 2")), "{names:?}");
    b.picture("compared");
    choose(b, -1);
    assert_eq!(b.js("optpipe.shown().length"), json!(1));
    choose(b, 1);

    // Two fingers.
    b.call("Emulation.setTouchEmulationEnabled", json!({"enabled": true, "maxTouchPoints": 2}));
    let at = middle_of(b, 0, 5);
    let before = span(b);
    let fingers = |apart: f64| json!([{"x": at.0 + 200.0 - apart, "y": at.1, "id": 1}, {"x": at.0 + 200.0 + apart, "y": at.1, "id": 2}]);
    for (kind, points) in [
        ("touchStart", fingers(30.0)),
        ("touchMove", fingers(60.0)),
        ("touchMove", fingers(90.0)),
        ("touchEnd", json!([])),
    ] {
        b.call("Input.dispatchTouchEvent", json!({"type": kind, "touchPoints": points}));
    }
    assert!((span(b) / before - 1.0 / 3.0).abs() < 0.05, "{} of {before}", span(b));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn the_page_fits_a_phone_the_dark_and_a_browser_without_scripts() {
    let Some(mut browser) = Browser::start() else { return };
    let page = html(&run(&problem(4, 2, 8), "a-model-with-a-rather-long-name-that-has-no-space-to-break-at")).unwrap();
    let b = &mut browser;
    b.open(&page, 390, 844);
    assert_eq!(b.js("document.documentElement.scrollWidth"), json!(390));
    b.frame();
    b.picture("phone");
    let light = b.js("getComputedStyle(document.body).backgroundColor");
    let features = json!({"features": [{"name": "prefers-color-scheme", "value": "dark"}]});
    let before = pixels(b);
    b.call("Emulation.setEmulatedMedia", features);
    assert_ne!(b.js("getComputedStyle(document.body).backgroundColor"), light);
    assert!(pixels(b) != before, "the canvases follow");
    assert_eq!(b.complaints(), Vec::<String>::new());
    b.open(&page, 1200, 1500);
    b.frame();
    b.picture("dark");

    b.call("Emulation.setScriptExecutionDisabled", json!({"value": true}));
    for width in [390, 1200] {
        b.open(&page, width, 900);
        assert_eq!(b.js("document.documentElement.className"), json!(""), "no script ran");
        assert_eq!(b.js("document.documentElement.scrollWidth"), json!(width));
        let picture = b.js("document.querySelector('#picture svg').getBoundingClientRect().height");
        assert!(picture.as_f64().unwrap() > 200.0, "{picture}");
        assert_eq!(b.js("document.getElementById('timeline').getBoundingClientRect().height"), json!(0));
        assert!(b.js("document.querySelectorAll('table').length").as_u64().unwrap() >= 8);
        b.picture(&format!("no-scripts-{width}"));
    }
}

#[test]
fn a_large_timeline_stays_fluid() {
    let Some(mut browser) = Browser::start() else { return };
    let page = html(&run(&problem(32, 2, 256), "a model")).unwrap();
    let b = &mut browser;
    b.open(&page, 1400, 1000);
    b.js("document.getElementById('rows').scrollIntoView()");
    b.frame();
    b.picture("large");
    let ops = b.js("optpipe.shown().reduce((sum, s) => sum + s.count, 0)").as_u64().unwrap();
    assert!(ops > 98_000, "{ops} ops");
    // Time that the script takes for a frame, at every zoom from all of it to some ops.
    let mut frames = Vec::new();
    for _ in 0..20 {
        b.js("document.getElementById('zoom-in').click()");
        b.frame();
        frames.push(b.js("optpipe.frame_ms").as_f64().unwrap());
    }
    b.picture("large-zoomed");
    frames.sort_by(f64::total_cmp);
    eprintln!("{ops} ops: median frame {:.1} ms, longest {:.1} ms", frames[10], frames[19]);
    // Far from what a quiet machine takes, about 10 ms: this one may be busy, and draws without a GPU.
    assert!(frames[10] < 150.0, "{frames:?}");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}
