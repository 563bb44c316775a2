//! What a screen reader is told, from the browser's own accessibility tree.

use serde_json::{Value, json};

use super::chromium::Browser;
use super::*;

/// Role and name of everything that is not left out.
fn told(browser: &mut Browser) -> Vec<(String, String)> {
    let tree = browser.call("Accessibility.getFullAXTree", json!({}));
    let nodes = tree["nodes"].as_array().unwrap();
    let text = |node: &Value, of: &str| node[of]["value"].as_str().unwrap_or("").to_owned();
    nodes.iter().filter(|node| node["ignored"] != true).map(|node| (text(node, "role"), text(node, "name"))).collect()
}

#[test]
fn a_screen_reader_is_told_what_everything_is() {
    let Some(mut browser) = Browser::start() else { return };
    browser.open(&html(&run(&problem(4, 1, 8), "a model")).unwrap(), 1200, 900);
    let b = &mut browser;
    b.call("Accessibility.enable", json!({}));
    b.frame();
    let nodes = told(b);
    let is_there = |role: &str, name: &str| nodes.iter().any(|(r, n)| r == role && n.trim() == name);
    for name in ["Zoom in", "Zoom out", "Fit", "Critical path", "Differences"] {
        assert!(is_there("button", name), "a button {name}: {nodes:?}");
    }
    for name in ["Upper", "Lower"] {
        assert!(is_there("combobox", name), "a choice {name}: {nodes:?}");
    }
    assert!(is_there("application", "Timeline of the schedules, device by device"), "{nodes:?}");
    assert!(is_there("heading", "a model") && is_there("region", "Verdict"), "{nodes:?}");
    // Nothing that one can use is without a name, and no picture is.
    for (role, name) in &nodes {
        let used = ["button", "combobox", "application", "image", "img", "heading", "link"].contains(&role.as_str());
        assert!(!used || !name.trim().is_empty(), "a {role} without a name");
    }
    let pictures = nodes.iter().filter(|(role, _)| role == "image" || role == "img");
    assert!(pictures.clone().any(|(_, name)| name.starts_with("Step time over memory")), "{nodes:?}");

    // What is selected is announced, as a live region.
    b.js("document.getElementById('rows').focus()");
    b.key("ArrowRight");
    b.frame();
    let tree = b.call("Accessibility.getFullAXTree", json!({}));
    let nodes = tree["nodes"].as_array().unwrap();
    let status = nodes.iter().find(|node| node["role"]["value"] == "status").expect("a status");
    let live = status["properties"].as_array().unwrap().iter().find(|property| property["name"] == "live");
    assert_eq!(live.map(|property| &property["value"]["value"]), Some(&json!("polite")), "{status}");
    let said = b.js("document.getElementById('said').textContent");
    assert!(said.as_str().unwrap().contains("device 0"), "{said}");
    let heard = nodes.iter().any(|node| {
        let name = node["name"]["value"].as_str().unwrap_or("");
        !name.is_empty() && said.as_str().unwrap().contains(name) && node["role"]["value"] == "StaticText"
    });
    assert!(heard, "what is announced is in the tree: {said}");
    // Whether something is on or off is told, too.
    b.key("c");
    let tree = b.call("Accessibility.getFullAXTree", json!({}));
    let critical =
        tree["nodes"].as_array().unwrap().iter().find(|node| node["name"]["value"] == "Critical path").unwrap();
    let pressed = critical["properties"].as_array().unwrap().iter().find(|property| property["name"] == "pressed");
    assert_eq!(pressed.map(|property| &property["value"]["value"]), Some(&json!("true")), "{critical}");
}

#[test]
fn the_size_of_the_milp_and_every_way_to_the_front_are_shown() {
    let run = run(&problem(4, 1, 8), "a model");
    let page = html(&run).unwrap();
    let size = optpipe_solver::milp::size(&run.rounds[0].problem);
    assert!(page.contains("it would have had") && page.contains(&crate::text::count(size.variables as u64)), "{page}");
    for name in ["PipeOffload", "textbook + offload", "ours, full solve", "ours, list scheduling", "bound"] {
        assert!(page.contains(name), "{name}");
    }
}
