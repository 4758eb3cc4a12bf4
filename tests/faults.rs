//! The page on faults names tests, and those tests are there.

use std::path::Path;

/// Every test that `docs/faults.md` names is there.
#[test]
fn the_page_on_faults_names_tests_that_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/faults.md")).expect("the page");
    let mut sources = String::new();
    let mut dirs = vec![root.join("tests"), root.join("crates")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push_str(&std::fs::read_to_string(path).expect("a source"));
            }
        }
    }
    // What is in backticks and has words is the name of a test.
    let named: Vec<&str> = page.split('`').skip(1).step_by(2).filter(|name| name.matches('_').count() > 1).collect();
    assert!(named.len() > 60, "{} tests are named", named.len());
    for name in named {
        assert!(
            sources.contains(&format!("fn {name}(")) || sources.contains(&format!("fn {name}<")),
            "no test is called {name}"
        );
    }
}
