//! Checks every recorded case of a folder and prints a table: case, quantity, error, tolerance,
//! pass.

use deq_parity::{Outcome, Precision, check_in};
use deq_testkit::cases;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let single = arguments.iter().any(|argument| argument == "--f32");
    arguments.retain(|argument| argument != "--f32");
    let [folder] = arguments.as_slice() else {
        eprintln!("usage: parity [--f32] FOLDER, a folder of NAME.safetensors with NAME.json");
        return ExitCode::from(2);
    };
    let folder = PathBuf::from(folder);
    let cases = match cases(&folder) {
        Ok(cases) if !cases.is_empty() => cases,
        Ok(_) => {
            eprintln!("{} has no .safetensors file", folder.display());
            return ExitCode::from(2);
        }
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    // The first tensor of the process fixes the float type.
    let precision = match single {
        true => Precision::f32(),
        false => Precision::f64(),
    };
    println!(
        "{:28} {:56} {:>9} {:>9}  pass",
        "case", "quantity", "error", "tolerance"
    );
    let (mut passed, mut failed, mut uncovered) = (0, 0, 0);
    for case in &cases {
        match check_in(case, &precision) {
            Outcome::Checked(checks) => {
                for check in checks {
                    let pass = check.passes();
                    *(if pass { &mut passed } else { &mut failed }) += 1;
                    println!(
                        "{:28} {:56} {:9.1e} {:9.0e}  {}{}",
                        case.name,
                        check.quantity,
                        check.error,
                        check.tolerance,
                        if pass { "yes" } else { "NO" },
                        if check.note.is_empty() {
                            String::new()
                        } else {
                            format!("   {}", check.note)
                        }
                    );
                }
            }
            Outcome::NotCovered(kind) => {
                uncovered += 1;
                println!("{:28} kind {kind}: not covered", case.name);
            }
        }
    }
    println!("\n{passed} passed, {failed} failed, {uncovered} cases not covered");
    if failed > 0 {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
