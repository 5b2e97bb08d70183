//! The modules of the core use only modules of lower layers: the table in the header of `src/lib.rs`
//! is the only list, and the sources are compared with it.
//!
//! What counts as a use is a path from the root of the crate: `crate::a::b`, each name of
//! `crate::{a, b::c}`, and a chain of `super` that reaches the root. Comments, strings and test
//! code do not count. A folder is one module, so its files may use each other as they like.
//!
//! The folders of `src/python` have a table of their own, in the header of `src/python.rs`. There a
//! use is a path from `crate::python`; all of the core stands below.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// The modules by the number of their layer, and the re-exported names by their module.
struct Layers {
    rank: HashMap<String, usize>,
    reexports: HashMap<String, String>,
}

/// A use of a module that does not stand below.
#[derive(Debug, PartialEq, Eq)]
struct Upward {
    file: String,
    line: usize,
    from: (String, usize),
    to: (String, usize),
}

impl fmt::Display for Upward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, from_rank) = &self.from;
        let (to, to_rank) = &self.to;
        write!(
            f,
            "{}:{}: {from} (layer {from_rank}) uses {to} (layer {to_rank}), which does not stand below it",
            self.file, self.line
        )
    }
}

impl Layers {
    /// From the table in the header of `lib.rs`, or of `python.rs`: one row a layer, the lowest first.
    fn of(lib: &str) -> Layers {
        let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | "));
        let mut rank = HashMap::new();
        for (number, row) in rows.skip(1).enumerate() {
            let modules = row.split('|').next().unwrap_or_default();
            for module in modules.split('`').skip(1).step_by(2) {
                assert!(
                    rank.insert(module.to_owned(), number + 1).is_none(),
                    "the table lists {module} twice"
                );
            }
        }
        let mut reexports = HashMap::new();
        for (module, names) in lib.split("\npub use ").skip(1).filter_map(|rest| {
            let (path, _) = rest.split_once(';')?;
            path.split_once("::")
        }) {
            let names = names.trim_matches(['{', '}']).split(',').map(str::trim);
            reexports.extend(names.map(|name| (name.to_owned(), module.to_owned())));
        }
        Layers { rank, reexports }
    }

    /// The uses in a file of `module` of modules that are not below it.
    fn upward(&self, file: &str, module: &str, text: &str) -> Vec<Upward> {
        let own = self.rank[module];
        let depth = Path::new(file).components().count() - 1; // of `src`
        let depth = depth - usize::from(file.ends_with("/mod.rs"));
        let mut found = Vec::new();
        for (line, name) in root_paths(&without_tests(&bare_code(text)), depth) {
            let name = self.reexports.get(&name).unwrap_or(&name);
            let rank = self.rank.get(name).copied();
            let rank = rank.unwrap_or_else(|| panic!("{file}:{line}: no layer has `{name}`"));
            if name != module && rank >= own {
                found.push(Upward {
                    file: file.to_owned(),
                    line,
                    from: (module.to_owned(), own),
                    to: (name.clone(), rank),
                });
            }
        }
        found
    }
}

/// The text with comments and string literals blanked, line by line.
fn bare_code(text: &str) -> String {
    let mut bare = String::with_capacity(text.len());
    let mut in_string = false;
    for line in text.lines() {
        let mut chars = line.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '\\' if in_string => _ = chars.next(),
                '\'' if !in_string && chars.peek() == Some(&'"') => _ = chars.next(),
                '"' => in_string = !in_string,
                '/' if !in_string && chars.peek() == Some(&'/') => break,
                _ if in_string => {}
                _ => bare.push(c),
            }
        }
        bare.push('\n');
    }
    bare
}

/// The code with every item blanked that only tests have.
fn without_tests(code: &str) -> String {
    let is_test = |line: &str| {
        let tests = ["#[cfg(test", "#[cfg(all(test", "#[cfg(all(loom, test"];
        tests.iter().any(|form| line.trim_start().starts_with(form))
    };
    let mut kept = String::with_capacity(code.len());
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        kept.push_str(if is_test(line) { "" } else { line });
        kept.push('\n');
        if !is_test(line) {
            continue;
        }
        let (mut depth, mut braces) = (0, false);
        for line in lines.by_ref() {
            kept.push('\n');
            if line.trim_start().starts_with("#[") {
                continue;
            }
            let count = |brace| line.matches(brace).count();
            braces |= line.contains('{');
            depth += count('{');
            depth -= count('}').min(depth);
            let ends = line.trim_end().ends_with([';', ',']);
            if depth == 0 && (braces || ends) {
                break;
            }
        }
    }
    kept
}

/// Each name that a path takes at the root of the crate, with its line. `depth`: modules from the
/// root to the file's own.
fn root_paths(code: &str, depth: usize) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let tokens = tokens(code);
    let text = |at: usize| tokens.get(at).map_or("", |(_, token)| token);
    let mut braces = 0;
    let mut inline_modules = Vec::new(); // the brace depths at which they began
    let mut at = 0;
    while at < tokens.len() {
        match text(at) {
            "{" => braces += 1,
            "}" => {
                braces -= 1;
                inline_modules.retain(|began| *began <= braces);
            }
            "mod" if text(at + 2) == "{" => inline_modules.push(braces + 1),
            _ => {}
        }
        let mut next = at;
        if text(at) == "crate" && text(at + 1) == "::" {
            next = at + 2;
        } else if text(at) == "super" {
            while text(next) == "super" && text(next + 1) == "::" {
                next += 2;
            }
            if (next - at) / 2 < depth + inline_modules.len() {
                at = next.max(at + 1);
                continue;
            }
        }
        if next == at {
            at += 1;
        } else {
            found.extend(names_from(&tokens, next));
            at = next;
        }
    }
    found
}

/// The first names of the path, or of each path of the group, that begins there.
fn names_from(tokens: &[(usize, String)], at: usize) -> Vec<(usize, String)> {
    let is_name = |token: &str| token.starts_with(|c: char| c.is_alphabetic() || c == '_');
    let mut found = Vec::new();
    let (mut nesting, mut first) = (0, true);
    for (line, token) in &tokens[at..] {
        match token.as_str() {
            "{" => nesting += 1,
            "}" => nesting -= 1,
            "," => first = nesting == 1,
            name => {
                if first && nesting <= 1 && is_name(name) && name != "self" {
                    found.push((*line, name.to_owned()));
                }
                first = false;
            }
        }
        if nesting == 0 {
            break;
        }
    }
    found
}

/// Names, `::` and single signs, each with its line.
fn tokens(code: &str) -> Vec<(usize, String)> {
    let mut tokens = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let is_name = |c: char| c.is_alphanumeric() || c == '_';
            let length = if is_name(first) {
                rest.find(|c| !is_name(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            tokens.push((number + 1, rest[..length].to_owned()));
            rest = rest[length..].trim_start();
        }
    }
    tokens
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

fn lib() -> (PathBuf, Layers) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lib = fs::read_to_string(root.join("src/lib.rs")).unwrap();
    (root.to_owned(), Layers::of(&lib))
}

#[test]
fn each_module_uses_only_modules_below_it() {
    let (root, layers) = lib();
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    let mut upward = Vec::new();
    for file in files {
        let path = file.strip_prefix(&root).unwrap().to_str().unwrap();
        let path = path.replace('\\', "/");
        let module = path.split('/').nth(1).unwrap().trim_end_matches(".rs");
        let only_tests = module == "models" || path.ends_with("/tests.rs");
        if module != "lib" && !only_tests {
            let text = fs::read_to_string(&file).unwrap();
            assert!(
                layers.rank.contains_key(module),
                "{path}: the table in src/lib.rs gives {module} no layer"
            );
            upward.extend(layers.upward(&path, module, &text));
        }
    }
    let lines: Vec<_> = upward.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "\n{}", lines.join("\n"));
}

/// The text of a file of `src/python`, as if that folder were the root of the crate, and the core
/// another crate.
fn in_python(text: &str) -> String {
    text.replace("crate::python::", "python_root::")
        .replace("crate::", "core::")
        .replace("python_root::", "crate::")
}

#[test]
fn each_module_of_the_extension_uses_only_modules_below_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("src/python.rs")).unwrap();
    let layers = Layers::of(&table);
    let mut files = Vec::new();
    sources(&root.join("src/python"), &mut files);
    let mut upward = Vec::new();
    for file in files {
        let path = file.strip_prefix(root.join("src/python")).unwrap();
        let path = path.to_str().unwrap().replace('\\', "/");
        let module = path.split('/').next().unwrap().trim_end_matches(".rs");
        assert!(
            layers.rank.contains_key(module),
            "src/python/{path}: the table in src/python.rs gives {module} no layer"
        );
        let text = in_python(&fs::read_to_string(&file).unwrap());
        let found = layers.upward(&format!("src/{path}"), module, &text);
        upward.extend(found.iter().map(|found| format!("src/python: {found}")));
    }
    assert!(upward.is_empty(), "\n{}", upward.join("\n"));
    for module in layers.rank.keys() {
        let file = root.join("src/python").join(module).with_extension("rs");
        assert!(
            file.is_file(),
            "src/python.rs lists {module}, which does not exist"
        );
    }
}

#[test]
fn a_use_of_a_higher_module_of_the_extension_is_found() {
    let layers = Layers::of("//! | module | subject |\n//! | `low` | |\n//! | `high` | |");
    let text = in_python("use crate::scope;\nuse crate::python::high::{self, That};");
    let upward = layers.upward("src/low/file.rs", "low", &text);
    let found: Vec<_> = upward
        .iter()
        .map(|found| (found.line, &found.to.0[..]))
        .collect();
    assert_eq!(found, [(2, "high")]);
}

#[test]
fn each_module_in_the_table_exists() {
    let (root, layers) = lib();
    for module in layers.rank.keys() {
        let file = root.join("src").join(module).with_extension("rs");
        assert!(
            file.is_file(),
            "src/lib.rs lists {module}, which does not exist"
        );
    }
}

#[test]
fn every_form_of_an_upward_use_is_found_and_test_code_is_not() {
    let (_, layers) = lib();
    let names = |text: &str| {
        let found = layers.upward("src/park/scheduler.rs", "park", text);
        let name = |upward: Upward| (upward.line, upward.to.0);
        found.into_iter().map(name).collect::<Vec<_>>()
    };
    let at = |line: usize, name: &str| (line, name.to_owned());
    assert_eq!(names("use crate::testing;"), [at(1, "testing")]);
    assert_eq!(
        names("use crate::{\n    clock::{self, Time}, scope,\n    task::{Task, block},\n};"),
        [at(2, "scope"), at(3, "task")]
    );
    assert_eq!(names("fn f() { crate::wait::sleep(); }"), [at(1, "wait")]);
    assert_eq!(names("use super::super::token::tree;"), [at(1, "token")]);
    assert_eq!(names("use crate::CancelToken;"), [at(1, "token")]);
    assert_eq!(names("mod a {\n    use super::super::x;\n}"), []);
    assert_eq!(names("use super::Waiter; // crate::scope"), []);
    assert_eq!(names("use crate::park::latch; use crate::fork;"), []);
    assert_eq!(
        names("#[cfg(test)]\nmod tests {\n    use crate::scope;\n}\nuse crate::io;"),
        [at(5, "io")]
    );
    let upward = layers.upward("src/park.rs", "park", "\nuse crate::scope;");
    let message = upward[0].to_string();
    assert!(
        message.starts_with("src/park.rs:2: park (layer "),
        "{message}"
    );
    assert!(message.contains("uses scope (layer "), "{message}");
}
