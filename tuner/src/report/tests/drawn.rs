//! What is drawn where there is more to show than there are pixels.

use serde_json::{Value, json};

use super::chromium::Browser;
use super::*;

/// The pictures of all devices, as text.
fn pixels(browser: &mut Browser) -> Value {
    browser.frame();
    browser.js("Array.from(document.querySelectorAll('#rows canvas'), (c) => c.toDataURL()).join()")
}

/// The pictures once they stay as they are: on a busy machine a page takes its width late.
fn settled(browser: &mut Browser) -> Value {
    let mut last = pixels(browser);
    for _ in 0..50 {
        let next = pixels(browser);
        if next == last {
            break;
        }
        last = next;
    }
    last
}

#[test]
fn differences_are_marked_in_lanes_with_more_ops_than_pixels() {
    let Some(mut browser) = Browser::start() else { return };
    browser.open(&html(&run(&problem(8, 2, 256), "a model")).unwrap(), 1100, 800);
    let b = &mut browser;
    b.js("document.getElementById('rows').scrollIntoView()");
    // Predicted above measured, all of it in view.
    let most = b.js("Math.max(...optpipe.shown()[1].lanes.map((lanes) => lanes[0][1] - lanes[0][0]))");
    assert!(most.as_u64().unwrap() > 1100, "{most} ops in a lane");
    let marked = settled(b);
    b.picture("dense-differences");
    b.js("document.getElementById('differences').click()");
    // Not by assert_eq, which would print the pictures.
    assert!(pixels(b) != marked, "nothing is marked");
    b.js("document.getElementById('differences').click()");
    assert!(settled(b) == marked, "what is marked again differs");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// Reddish pixels along a line of the first device's memory, so far below its upper edge.
fn reddish(browser: &mut Browser, below: f64) -> u64 {
    browser.frame();
    let found = browser.js(&format!(
        "(() => {{
            const canvas = document.querySelectorAll('#rows canvas')[1];
            const scale = canvas.width / canvas.clientWidth;
            const y = Math.round((optpipe.bands().bands.at(-1).y + {below}) * scale);
            const data = canvas.getContext('2d').getImageData(0, y, canvas.width, 1).data;
            let count = 0;
            for (let i = 0; i < data.length; i += 4) count += data[i] - data[i + 1] > 60;
            return count;
        }})()"
    ));
    found.as_u64().unwrap()
}

#[test]
fn the_limit_is_drawn_however_far_it_is_above_the_peak() {
    let Some(mut browser) = Browser::start() else { return };
    let b = &mut browser;
    for times in [1, 50] {
        let mut problem = problem(2, 1, 4);
        problem.bytes.capacity.iter_mut().for_each(|capacity| *capacity *= times);
        b.open(&html(&run(&problem, "a model")).unwrap(), 1100, 800);
        b.picture(&format!("limit-{times}"));
        let height = b.js("optpipe.bands().bands.at(-1).height").as_f64().unwrap() as u64;
        let most = (0..height).map(|below| reddish(b, below as f64)).max();
        assert!(most > Some(300), "{most:?} pixels where the limit is {times} times as high");
    }
}

#[test]
fn every_way_to_schedule_is_in_the_plot_of_memory_against_time() {
    let Some(mut browser) = Browser::start() else { return };
    let b = &mut browser;
    b.open(&html(&run(&problem(4, 1, 8), "a model")).unwrap(), 1100, 800);
    let plot = "Array.from(document.querySelectorAll('figure.plot')).find((x) => x.innerHTML.includes('PipeOffload'))";
    b.js(&format!("{plot}.scrollIntoView()"));
    b.frame();
    b.picture("front");
    let names = b.js(&format!("Array.from({plot}.querySelectorAll('.legend li'), (x) => x.textContent)"));
    let expected = [
        "bound",
        "textbook + offload",
        "PipeOffload",
        "ours, list scheduling",
        "ours, full solve",
        "textbook schedules",
    ];
    assert_eq!(names, json!(expected));
    // Each has a colour of its own, in the legend as in the plot.
    let colours = b.js(&format!(
        "new Set(Array.from({plot}.querySelectorAll('.legend .swatch'), (x) => getComputedStyle(x).backgroundColor)).size"
    ));
    assert_eq!(colours, json!(expected.len()));
    let features = json!({"features": [{"name": "prefers-color-scheme", "value": "dark"}]});
    b.call("Emulation.setEmulatedMedia", features);
    b.js("document.querySelector('details').open = true");
    b.frame();
    b.picture("front-dark");
    assert_eq!(browser.complaints(), Vec::<String>::new());
}
