//! Images as a task: opening fills in what the data determine, and models go out and come back.

use burn::tensor::Device;
use deq_data::{ImageSource, Transform};
use deq_models::checkpoint::StateDict;
use deq_train::files::write_json;
use deq_train::tasks::images::{ImagesError, ImagesModelConfig, ImagesTask};
use deq_train::{BatchPlan, Network, Opening, Recipe, RunError, Split, Task, TrainError};
use std::path::Path;

fn task(preset: &str) -> ImagesTask {
    Recipe::<ImagesTask>::preset(preset).unwrap().task
}

const PLAN: BatchPlan = BatchPlan {
    batch: 16,
    seed: 1,
    workers: 0,
};

#[test]
fn a_field_out_of_range_is_named() {
    let mut task = task("mini-shapes-segmentation");
    let message = |task: &ImagesTask| task.validate().unwrap_err().to_string();
    task.classes = vec!["a".to_owned(), "b".to_owned()];
    task.class_weights = Some(vec![1.0, 0.0]);
    assert_eq!(
        message(&task),
        "task.class_weights is 0, but must be above 0"
    );
    task.train_transform = Transform::PadCrop { size: 36, pad: 4 };
    task.class_weights = Some(Vec::new());
    assert_eq!(
        message(&task),
        "task.train_transform makes images with a side of 36 pixels, \
         but the model needs multiples of 8"
    );
    task.train_transform = Transform::PadCrop { size: 32, pad: 4 };
    task.eval_transform = Transform::CenterCrop {
        resize: 48,
        crop: 40,
    };
    let moved = task.validate().unwrap_err();
    assert!(matches!(
        moved,
        TrainError::Images(ImagesError::MovedPixels)
    ));
    task.eval_transform = Transform::Whole;
    task.validate().unwrap();
    task.class_weights = Some(vec![1.0]);
    assert_eq!(
        message(&task),
        "1 class weights for 2 classes: give one for each, or none"
    );
    task.data = ImageSource::Shapes;
    assert!(message(&task).starts_with("the model does not fit the data shapes"));
}

#[test]
fn data_are_given_as_text() {
    let mut recipe = Recipe::<ImagesTask>::preset("mini").unwrap();
    recipe.set("task.data", "cifar10:some/folder").unwrap();
    assert_eq!(recipe.task.data, ImageSource::Cifar10("some/folder".into()));
    let wrong = recipe.set("task.data", "cifar11").unwrap_err().to_string();
    assert!(
        wrong.contains("there is no data set \"cifar11\""),
        "{wrong}"
    );
    recipe.set("task.class_weights", "[1, 2]").unwrap();
    assert_eq!(recipe.task.class_weights, Some(vec![1.0, 2.0]));
}

#[test]
fn opening_fills_in_what_the_data_determine() {
    let mut shapes = task("mini");
    shapes.open(&Opening::default()).unwrap();
    let splits = ImageSource::Shapes.open().unwrap();
    assert_eq!(shapes.classes, splits.train.classes());
    let ImagesModelConfig::Classifier(model) = &shapes.model else {
        panic!("a classifier");
    };
    assert_eq!(model.num_classes, shapes.classes.len());
    assert!(shapes.data_weights.is_empty());
    assert!(shapes.fingerprint.is_some());
    let again = shapes.clone();
    shapes.open(&Opening::default()).unwrap();
    assert_eq!(shapes, again);
    // Weights that are given stay; those of other data, which a recipe came with, do not.
    let mut pixels = task("mini-shapes-segmentation");
    pixels.class_weights = Some(Vec::new());
    pixels.open(&Opening::default()).unwrap();
    assert_eq!(pixels.class_weights, Some(Vec::new()));
    let weights = pixels.data_weights.clone();
    assert_eq!(weights.len(), pixels.classes.len());
    pixels.data_weights = vec![1.0; weights.len()];
    let mut again: ImagesTask =
        serde_json::from_value(serde_json::to_value(&pixels).unwrap()).unwrap();
    again.open(&Opening::default()).unwrap();
    assert_eq!(again.data_weights, weights);
}

#[test]
fn a_resnet_is_as_large_as_the_equilibrium_and_determined_by_the_configuration() {
    let network = Network::Layers { depth: 18 };
    let mut task = task("mini");
    task.prepare(network).unwrap();
    task.open(&Opening::default()).unwrap();
    let resnet = task.resnet.clone().unwrap();
    assert!(resnet.small_images);
    assert_eq!(resnet.num_classes, task.classes.len());
    let (found, wanted) = (resnet.parameters(), task.model.parameters());
    for width in [resnet.width - 1, resnet.width + 1] {
        let other = resnet.clone().with_width(width).parameters();
        assert!(found.abs_diff(wanted) < other.abs_diff(wanted));
    }
    let json = serde_json::to_string(&task).unwrap();
    let mut again: ImagesTask = serde_json::from_str(&json).unwrap();
    again.prepare(network).unwrap();
    again.open(&Opening::default()).unwrap();
    assert_eq!(again, task);
    task.prepare(Network::Equilibrium).unwrap();
    assert_eq!(task.resnet, None);
}

#[test]
fn a_run_goes_on_with_its_data_only() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path();
    let mut recipe = Recipe::<ImagesTask>::preset("mini").unwrap();
    recipe.task.open(&Opening::default()).unwrap();
    write_json(&run.join("config.json"), &recipe).unwrap();
    let from = |training| Opening {
        run: Some(run),
        training,
        progress: None,
    };
    let mut same = task("mini");
    same.open(&from(true)).unwrap();

    let other = |change: &dyn Fn(&mut ImagesTask)| {
        let mut recipe = recipe.clone();
        change(&mut recipe.task);
        write_json(&run.join("config.json"), &recipe).unwrap();
    };
    other(&|task| task.fingerprint = Some(1));
    let error = same.open(&from(true)).unwrap_err();
    assert!(
        matches!(error, TrainError::Run(RunError::OtherData { .. })),
        "{error}"
    );
    // It may be measured on other images of the same classes.
    same.open(&from(false)).unwrap();
    other(&|task| task.data = ImageSource::Cifar10("x".into()));
    let error = same.open(&from(false)).unwrap_err();
    assert!(
        matches!(error, TrainError::Run(RunError::OtherData { .. })),
        "{error}"
    );
    other(&|task| task.classes.truncate(1));
    let error = same.open(&from(false)).unwrap_err();
    assert!(
        matches!(error, TrainError::Images(ImagesError::OtherClasses { .. })),
        "{error}"
    );
}

#[test]
fn batches_are_the_loader_s_and_there_is_one_held_out_split() {
    let mut task = task("mini-shapes-segmentation");
    let data = task.open(&Opening::default()).unwrap();
    let device = Device::flex();
    let splits = task.data.open().unwrap();
    let training = task.training(&data, &PLAN).unwrap();
    assert_eq!(training.per_pass(), splits.train.len() / PLAN.batch);
    let places = training.per_pass() - 1..training.per_pass() + 1;
    let batches: Vec<_> = training
        .batches(places, &device)
        .map(Result::unwrap)
        .collect();
    assert_eq!(batches.len(), 2);
    for batch in &batches {
        assert_eq!(batch.images.dims(), [16, 3, 48, 48]);
        assert_eq!(batch.targets.len(), 16 * 48 * 48);
    }
    let held_out = task.held_out(&data, Split::Valid, &PLAN).unwrap();
    assert_eq!(held_out.per_pass(), splits.test.len().div_ceil(PLAN.batch));
    assert!(matches!(
        task.held_out(&data, Split::Test, &PLAN).err(),
        Some(TrainError::Run(RunError::NoSplit { split: "test" }))
    ));
    assert!(task.left_out(&data).is_empty());
}

#[test]
fn a_model_goes_out_under_the_names_of_the_original_and_comes_back() {
    let device = Device::flex();
    for (preset, network, sample) in [
        ("mini", Network::Equilibrium, "classifier."),
        (
            "mini-shapes-segmentation",
            Network::Equilibrium,
            "last_layer.",
        ),
        ("mini", Network::Layers { depth: 18 }, "fc."),
    ] {
        let mut task = task(preset);
        task.prepare(network).unwrap();
        let data = task.open(&Opening::default()).unwrap();
        let model = task.init(network, &device).unwrap();
        let file = StateDict::from_tensors(task.state_dict(&model).unwrap());
        let names: Vec<String> = file.infos().map(|info| info.name).collect();
        assert!(
            names.iter().any(|name| name.starts_with(sample)),
            "{names:?}"
        );
        assert!(names.iter().any(|name| !ImagesTask::is_head(name)));

        let mut sized = self::task(preset);
        sized.prepare(network).unwrap();
        sized.sized_by(&file).unwrap();
        let before = sized.clone();
        sized.open(&Opening::default()).unwrap();
        sized.fits(&before, Path::new("file")).unwrap();
        assert_eq!(sized, task);
        let (_, report) = sized
            .load(sized.init(network, &device).unwrap(), &file)
            .unwrap();
        assert!(report.is_complete(), "{report}");
        drop(data);

        let mut fewer = sized.clone();
        fewer.classes.truncate(1);
        let error = fewer.fits(&before, Path::new("file")).unwrap_err();
        assert!(matches!(
            error,
            TrainError::Images(ImagesError::NumberOfClasses { .. })
        ));
    }
    let mut task = task("mini");
    task.prepare(Network::Layers { depth: 34 }).unwrap();
    let mut other = task.clone();
    other.prepare(Network::Layers { depth: 18 }).unwrap();
    other.open(&Opening::default()).unwrap();
    let model = other.init(Network::Layers { depth: 18 }, &device).unwrap();
    let file = StateDict::from_tensors(other.state_dict(&model).unwrap());
    let error = task.sized_by(&file).unwrap_err();
    assert!(matches!(
        error,
        TrainError::Images(ImagesError::OtherDepth {
            expected: 34,
            found: 18
        })
    ));
}
