use optpipe_solver::check::check;
use optpipe_solver::problem::Problem;
use proptest::prelude::*;
use roxmltree::{Document, Node};

use super::{any_problem, any_schedule, example, near, uniform};
use crate::export::bars::Bars;
use crate::export::memory::{memory_curves, peak};
use crate::export::{TimelineOptions, timeline_svg, units};

fn options(title: &str) -> TimelineOptions {
    TimelineOptions { title: title.to_owned(), subtitle: "how it came about".to_owned(), ..TimelineOptions::default() }
}

/// The points of a path of `M x y`, `H x`, `V y` and `Z`.
fn points(d: &str) -> Vec<(f64, f64)> {
    let spaced = d.replace('Z', "").replace('M', " M ").replace('H', " H ").replace('V', " V ");
    let mut tokens = spaced.split_whitespace();
    let (mut x, mut y) = (0.0, 0.0);
    let mut points = Vec::new();
    while let Some(command) = tokens.next() {
        let mut number = || tokens.next().unwrap().parse::<f64>().unwrap();
        match command {
            "M" => (x, y) = (number(), number()),
            "H" => x = number(),
            "V" => y = number(),
            other => panic!("{other} in {d}"),
        }
        points.push((x, y));
    }
    points
}

/// Well-formed, every number finite, everything inside the picture.
fn assert_sound(svg: &str) -> Document<'_> {
    let document = Document::parse(svg).unwrap();
    let root = document.root_element();
    let size = |node: Node<'_, '_>, name: &str| node.attribute(name).map_or(0.0, |v| v.parse::<f64>().unwrap());
    let (width, height) = (size(root, "width"), size(root, "height"));
    assert_eq!(root.attribute("viewBox").unwrap(), format!("0 0 {width} {height}"));
    let inside = |x: f64, y: f64| {
        // Half a pixel of rounding and of the least width of a box.
        assert!(
            (0.0..=width + 0.5).contains(&x) && (0.0..=height + 0.5).contains(&y),
            "({x}, {y}) of {width} x {height}"
        );
    };
    for node in document.descendants() {
        match node.tag_name().name() {
            "rect" => {
                let (x, y) = (size(node, "x"), size(node, "y"));
                let (w, h) = (size(node, "width"), size(node, "height"));
                assert!(w >= 0.0 && h >= 0.0, "{node:?}");
                inside(x, y);
                inside(x + w, y + h);
            }
            "text" => inside(size(node, "x"), size(node, "y")),
            "path" => points(node.attribute("d").unwrap()).into_iter().for_each(|(x, y)| inside(x, y)),
            _ => {}
        }
    }
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
    document
}

/// Boxes of ops: they alone bear a tooltip.
fn boxes(document: &Document<'_>) -> usize {
    let tooltip =
        |node: Node<'_, '_>| node.children().any(|child| child.has_tag_name(("http://www.w3.org/2000/svg", "title")));
    document.descendants().filter(|node| node.tag_name().name() == "rect" && tooltip(*node)).count()
}

fn words(document: &Document<'_>) -> Vec<String> {
    document
        .descendants()
        .filter(|n| n.tag_name().name() == "text")
        .filter_map(|n| n.text().map(str::to_owned))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_op_has_a_box_inside_the_picture(
        problem in any_problem(), seed in any::<u64>(), with_measured in any::<bool>(), width in 0.0..3000.0,
    ) {
        let schedule = any_schedule(&problem, seed, true);
        let measured = with_measured.then(|| near(&problem, &schedule));
        let options = TimelineOptions { width, ..options("any") };
        let svg = timeline_svg(&problem, &schedule, measured.as_ref(), &options).unwrap();
        let document = assert_sound(&svg);
        let panels = if with_measured { 2 } else { 1 };
        prop_assert_eq!(boxes(&document), panels * schedule.ops.iter().map(Vec::len).sum::<usize>());
    }

    #[test]
    fn curves_and_figures_agree_with_the_checker(problem in any_problem(), seed in any::<u64>()) {
        let schedule = any_schedule(&problem, seed, true);
        let report = check(&problem, &schedule);
        let bars = Bars::predicted(&problem, &schedule).unwrap();
        let curves = memory_curves(&problem, &bars);
        prop_assert_eq!(curves.iter().map(peak).collect::<Vec<_>>(), report.peak_bytes.clone());
        for (device, curve) in curves.iter().enumerate() {
            prop_assert_eq!(curve[0].0, 0);
            prop_assert!(curve.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 != w[1].1));
            // After the last op nothing but static is held.
            prop_assert_eq!(curve.last().unwrap().1, problem.bytes.r#static[device]);
        }
        prop_assert!((bars.bubble() - report.bubble).abs() < 1e-12);
        let svg = timeline_svg(&problem, &schedule, None, &options("any")).unwrap();
        let document = assert_sound(&svg);
        let words = words(&document);
        let heading = format!("Makespan {}, bubble {}", units::time(report.makespan_ns), units::percent(report.bubble));
        prop_assert!(words.contains(&heading), "{} not in {:?}", heading, words);
        for bytes in report.peak_bytes {
            let peak = format!("peak {}", units::bytes(bytes));
            prop_assert!(words.contains(&peak), "{} not in {:?}", peak, words);
        }
    }

    /// Whoever waited for memory starts before the end of what freed it is noted.
    #[test]
    fn late_ends_within_the_grain_draw_no_peak_that_was_not_there(problem in any_problem(), seed in any::<u64>()) {
        let schedule = any_schedule(&problem, seed, true);
        let mut bars = Bars::predicted(&problem, &schedule).unwrap();
        bars.grain = 7;
        let mut late = seed;
        for bar in bars.devices.iter_mut().flatten() {
            late = late.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            bar.end += (late >> 33) as i64 % (bars.grain + 1);
        }
        let peaks: Vec<i64> = memory_curves(&problem, &bars).iter().map(peak).collect();
        let sound = check(&problem, &schedule).peak_bytes;
        prop_assert!(peaks.iter().zip(&sound).all(|(drawn, held)| drawn <= held), "{:?} {:?}", peaks, sound);
    }

    #[test]
    fn any_text_is_escaped(title in any::<String>()) {
        let problem = example();
        let svg = timeline_svg(&problem, &any_schedule(&problem, 1, false), None, &options(&title)).unwrap();
        assert_sound(&svg);
    }
}

#[test]
fn text_arrives_as_written() {
    let problem = example();
    let title = "a < b & \"c\" > 'd'";
    let svg = timeline_svg(&problem, &any_schedule(&problem, 1, false), None, &options(title)).unwrap();
    let document = assert_sound(&svg);
    let named = |name: &str| document.descendants().find(|n| n.tag_name().name() == name).unwrap();
    assert_eq!(named("title").text(), Some(title));
    assert!(words(&document).contains(&title.to_owned()));
    assert!(words(&document).contains(&"how it came about".to_owned()));
    assert!(named("desc").text().unwrap().contains("Device 1: busy"));
    assert!(named("style").text().unwrap().contains("prefers-color-scheme:dark"));
}

#[test]
fn a_peak_over_the_limit_stands_out() {
    let mut problem = example();
    let schedule = any_schedule(&problem, 1, false);
    let over = |problem: &Problem| {
        let svg = timeline_svg(problem, &schedule, None, &options("limit")).unwrap();
        let document = assert_sound(&svg);
        document.descendants().filter(|n| n.attribute("class") == Some("over")).count()
    };
    assert_eq!(over(&problem), 0);
    problem.bytes.capacity = vec![7, 24];
    assert_eq!(over(&problem), 1);
}

#[test]
fn microbatch_numbers_are_shown_where_they_fit() {
    let numbers = |placement: Vec<usize>, microbatches| {
        let problem = uniform(placement, microbatches);
        let schedule = any_schedule(&problem, 5, false);
        let svg = timeline_svg(&problem, &schedule, None, &options("numbers")).unwrap();
        let document = assert_sound(&svg);
        let number =
            |n: &Node<'_, '_>| n.tag_name().name() == "text" && n.attribute("class").is_some_and(|c| c.len() == 2);
        document.descendants().filter(number).count()
    };
    assert_eq!(numbers(vec![0, 1], 3), 2 * 3 * 3);
    assert_eq!(numbers((0..8).collect(), 256), 0);
}

#[test]
fn large_pictures_stay_small_files() {
    let problem = uniform((0..32).collect(), 256);
    let schedule = any_schedule(&problem, 9, true);
    let measured = near(&problem, &schedule);
    let svg = timeline_svg(&problem, &schedule, Some(&measured), &options("large")).unwrap();
    assert!(svg.len() < 2_000_000, "{} bytes", svg.len());
    assert_sound(&svg);
    assert!(!svg.contains("Too many ops"));

    let interleaved = (0..128).map(|stage| stage % 64).collect();
    let problem = uniform(interleaved, 256);
    let schedule = any_schedule(&problem, 9, true);
    let svg = timeline_svg(&problem, &schedule, None, &options("larger")).unwrap();
    assert!(svg.len() < 2_000_000, "{} bytes", svg.len());
    let document = assert_sound(&svg);
    assert!(words(&document).iter().any(|line| line.starts_with("Too many ops to draw each")));
}

#[test]
fn a_step_without_length_is_still_a_picture() {
    let mut problem = example();
    let times = &mut problem.time_ns;
    for list in [&mut times.forward, &mut times.backward_input, &mut times.backward_weight] {
        list.fill(0);
    }
    times.send_forward.fill(0);
    times.send_backward.fill(0);
    let schedule = any_schedule(&problem, 1, false);
    assert_eq!(schedule.makespan_ns, 0);
    let svg = timeline_svg(&problem, &schedule, Some(&near(&problem, &schedule)), &options("nothing")).unwrap();
    assert_sound(&svg);
}
