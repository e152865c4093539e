//! The recorded models in f32, on the device that `DEQ_TEST_DEVICE` names, else on the CPU. A
//! process has one float type, so this is a binary of its own.

use deq_parity::{MODELS, Outcome, Precision, check_in};
use deq_testkit::{Golden, fixture, fixtures_of_kind, test_device};

/// Apart from the others, for devices on which all would take too long.
const SMALL: [&str; 2] = ["transformer_postln_plain", "mdeq_2branch_plain"];

fn reproduced(cases: impl IntoIterator<Item = Golden>) {
    let precision = Precision::f32(test_device!());
    for case in cases {
        let Outcome::Checked(checks) = check_in(&case, &precision) else {
            panic!("{} must be covered", case.name);
        };
        for check in checks {
            assert!(check.passes(), "{}: {check:?}", case.name);
        }
    }
}

#[test]
fn a_small_transformer_is_reproduced() {
    reproduced(fixture(SMALL[0]));
}

#[test]
fn a_small_classifier_is_reproduced() {
    reproduced(fixture(SMALL[1]));
}

#[test]
fn every_other_recorded_model_is_reproduced() {
    let cases = MODELS.into_iter().flat_map(fixtures_of_kind);
    reproduced(cases.filter(|case| !SMALL.contains(&&*case.name)));
}
