//! Checks every recorded case of a folder and prints a table: case, quantity, error, tolerance,
//! pass.

use clap::Parser;
use deq_parity::{Outcome, Precision, check_in};
use deq_testkit::cases;
use std::path::PathBuf;
use std::process::ExitCode;

/// Checks every recorded case of a folder and prints a table.
#[derive(Parser)]
struct Args {
    /// Folder of NAME.safetensors with NAME.json.
    folder: PathBuf,
    /// Check the models in f32, and nothing else.
    #[arg(long)]
    f32: bool,
    /// Where: flex (the CPU), or wgpu, vulkan, metal, cuda, rocm or cpu if compiled in.
    #[arg(long, default_value = "flex", requires = "f32")]
    device: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let folder = args.folder;
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
    let precision = match (args.f32, deq_testkit::named_device!(args.device.as_str())) {
        (false, _) => Precision::f64(),
        (true, Some(device)) => Precision::f32(device),
        (true, None) => {
            eprintln!("this program was built without the device {}", args.device);
            return ExitCode::from(2);
        }
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
