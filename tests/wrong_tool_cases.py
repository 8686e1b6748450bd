"""What users get wrong on the command line: the command, and words of what they are told, in order."""

from __future__ import annotations

MAKE = 'make_config.py student.py teacher.py --teacher-checkpoint'
KD = 'kd.py work_dirs/kd/trained.pth'

#: The files of each folder are in tests/test_wrong_tools.py; a detector's and a segmenter's have the same names.
BOTH = {
    # make_config.py
    'output is the student': (f'{MAKE} teacher.pth --method mse -o student.py', 'the output should not be one of the'),
    'output is the teacher': (f'{MAKE} teacher.pth --method mse -o ./teacher.py --force', 'should not be one of the'),
    'output exists': (f'{MAKE} teacher.pth --method mse -o mine.py', "'mine.py' exists and was made or|mine.py.bak"),
    'output was edited': (f'{MAKE} teacher.pth --method mse -o edited.py', "'edited.py' exists and was made or edited"),
    'output is no Python file': (
        f'{MAKE} teacher.pth -o kd.yaml',
        '-o should be the name of a Python file, like kd.py',
    ),
    'no checkpoint there': (f'{MAKE} teachr.pth --method mse -o new.py', 'checkpoint should be an existing file, but'),
    'checkpoint of the student': (
        f'{MAKE} student.pth --method mse -o new.py',
        'student.pth should fit |but only |Check that config and checkpoint belong together',
    ),
    'checkpoint that is empty': (
        f'{MAKE} empty.pth --method mse -o new.py',
        'empty.pth should be a PyTorch checkpoint',
    ),
    'checkpoint with code': (f'{MAKE} code.pth --method mse -o new.py', 'should hold tensors and plain data only'),
    'checkpoint with NaN': (f'{MAKE} nan.pth --method mse -o new.py', 'nan.pth should hold finite weights, but NaN or'),
    'method': (f'{MAKE} teacher.pth --method wavlet -o new.py', "but got 'wavlet'|Did you mean 'wavelet'?"),
    'config that is not there': (
        'make_config.py studnt.py teacher.py --teacher-checkpoint teacher.pth -o new.py',
        "cfg_path should be a config file |but got 'studnt.py'|Did you mean 'student.py'?",
    ),
    'config that a package has not': (
        'make_config.py student.py mmdet::gfl/gfl_r50_fpn_1x_coc.py --teacher-checkpoint teacher.pth -o new.py',
        "should name a config of mmdet, but there is none|Did you mean 'gfl_r50_fpn_1x_coco.py'?",
    ),
    'prompt that is none': (
        f'{MAKE} teacher.pth --method wavelet-prompt --prompt teacher.pth -o new.py',
        'teacher.pth should be a prompt file of freekd_mm or hold ',
    ),
    'iterations of stage 1': (
        f'{MAKE} teacher.pth --method freekd --prompt-iters -5 -o new.py',
        '--prompt-iters should be greater than 0, but got -5',
    ),
    'size of the dummy image': (
        f'{MAKE} teacher.pth --probe-size -1 -o new.py',
        '--probe-size should be greater than 0, but got -1',
    ),
    'student of a distillation': (
        'make_config.py kd.py teacher.py --teacher-checkpoint teacher.pth -o new.py',
        "student should be a plain model's config, but |kd.py is that of a distillation",
    ),
    'teacher of a distillation in stage 1': (
        'make_config.py student.py kd.py --teacher-checkpoint student.pth --method freekd -o new.py',
        "teacher should be a plain model's config, but |kd.py is that of a distillation",
    ),
    # train.py
    'config of a training': ('train.py kdd.py', "config should be an existing file, but got 'kdd.py'"),
    'config without a model': ('train.py no_model.py', "config should define 'model', but has "),
    'loss that nobody knows': (
        'train.py wrong_loss.py',
        "should be a registered name, but got 'freekd_mm.FeatureMSELos'. Did you mean 'freekd_mm.FeatureMSELoss'?",
    ),
    'backbone that nobody knows': ('train.py wrong_backbone.py', 'ResNett is not in the '),
    'config that does not parse': ('train.py broken.py', 'broken.py should be a config that loads, but has a'),
    'name that a config does not know': (
        'train.py name_error.py',
        "name_error.py should be a config that loads, but has a mistake: name 'base_lr' is not defined",
    ),
    'config that is a list': ('train.py list.json', 'list.json should be a config that loads, but has a mistake: '),
    'option of a backbone': ('train.py wrong_key.py', "unexpected keyword argument 'depht'"),
    'depth of a backbone': ('train.py wrong_depth.py', 'invalid depth 17 for resnet'),
    'option of a loss': ('train.py wrong_option.py', "(FeatureMSELoss) has no option 'wieght'; available: loss_weight"),
    'option of a teacher': (
        'train.py wrong_teacher.py',
        "teacher has no option 'checkpont'|Did you mean 'checkpoint'?",
    ),
    'teacher with NaN': ('train.py nan_teacher.py', 'nan.pth should hold finite weights, but NaN or infinity is in '),
    'teacher of another model': (
        'train.py other_teacher.py',
        'student.pth should fit |Check that config and checkpoint belong together.',
    ),
    'key of --cfg-options': (
        'train.py student.py --cfg-options optim_wrapper.optimizr.lr=0.1',
        "but got 'optim_wrapper.optimizr.lr'. Did you mean 'optim_wrapper.optimizer'",
    ),
    'key of --cfg-options at the top': (
        'train.py student.py --cfg-options trian_cfg.val_interval=1',
        "but got 'trian_cfg.val_interval'. Did you mean 'train_cfg'?",
    ),
    'folder in place of a config, which is not there': (
        'train.py empty',
        "config should be an existing file, but got 'empty', which is a folder",
    ),
    'resume what is not there': (
        'train.py kd.py --work-dir work_dirs/kd --resume work_dirs/kd/epoch_99.pth',
        "--resume should be an existing file, but got 'work_dirs/kd/epoch_99.pth'|trained.pth",
    ),
    'resume a plain model': ('train.py kd.py --resume student.pth', 'student.pth should be a checkpoint written in'),
    'resume the student alone': (
        'train.py kd.py --resume work_dirs/alone/trained.pth',
        'trained.pth should fit Distilled|missing: distillation.',
    ),
    'resume the student alone where nothing is projected': (
        'train.py kd_same.py --resume work_dirs/alone/trained.pth',
        'trained.pth should be a checkpoint of a distillation, but is one of the student alone.|load_from',
    ),
    'resume another model': (
        'train.py teacher.py --resume work_dirs/alone/trained.pth',
        'trained.pth should fit |other',
    ),
    'work directory that is a file': (
        'train.py student.py --work-dir notes.txt',
        'work_dir should be a folder that can',
    ),
    'start from a file that may go': (
        'train.py from_own.py --work-dir work_dirs/kd',
        'a training should not start from a file that it may write over, but |work_dirs/kd/|--resume',
    ),
    # test.py
    'test the teacher': ('test.py kd.py teacher.pth', 'teacher.pth should fit |but only |other shape: backbone.'),
    'test what is not there': (
        'test.py kd.py work_dirs/kd/epoch_99.pth',
        'checkpoint should be an existing file, but got',
    ),
    'test notes': ('test.py kd.py notes.txt', 'notes.txt should '),
    'test NaN': ('test.py teacher.py nan.pth', 'nan.pth should hold finite weights'),
    'result exists': (f'test.py {KD} --result notes.txt', "'notes.txt' exists and was made or edited by a person"),
    'result is the checkpoint': (
        f'test.py {KD} --result work_dirs/kd/trained.pth --force',
        'should not be one of the in',
    ),
    'predictions exist': (f'test.py {KD} --out mine.pkl', "'mine.pkl' exists and was made or edited by a person"),
    # export_student.py
    'export over the checkpoint': (
        f'export_student.py {KD} -o work_dirs/kd/trained.pth',
        'should not be one of the inp',
    ),
    'export over a file': (f'export_student.py {KD} -o student.pth', "'student.pth' exists and was made or edited"),
    'export the teacher': ('export_student.py kd.py teacher.pth -o new.pth', 'teacher.pth should fit |but only '),
    'export without a check': (f'export_student.py {KD} -o new.pth --images 0', 'images should be greater than 0, but'),
    'export notes': ('export_student.py kd.py notes.txt -o new.pth', 'notes.txt should '),
    'export what is not there': (
        'export_student.py kd.py none.pth -o new.pth',
        'checkpoint should be an existing file',
    ),
    # visualize.py
    'show the teacher': (
        'visualize.py kd.py teacher.pth picture.png --out new.html',
        'teacher.pth should fit Distilled',
    ),
    'show the exported': (
        'visualize.py kd.py student.pth picture.png --out new.html',
        'student.pth should fit Distilled',
    ),
    'show a plain config': (
        f'visualize.py student.py {KD[6:]} picture.png --out new.html',
        'should be a distillation co',
    ),
    'page exists': (f'visualize.py {KD} picture.png --out mine.html', "'mine.html' exists and was made or edited"),
    'page is the picture': (f'visualize.py {KD} picture.html --out picture.html', 'should not be one of the inputs'),
    'no picture': (
        f'visualize.py {KD} pictur.png --out new.html',
        "an image should be an existing file, but got 'pictur",
    ),
    # report.py
    'report exists': (
        'report.py work_dirs/kd --out mine.html',
        "'mine.html' exists and was made or edited by a person",
    ),
    'report of nothing': ('report.py empty --out new.html', 'empty: should hold <timestamp>/'),
    'report of a folder that is not there': (
        'report.py work_dirs/kdd --out new.html',
        "existing folder|Did you mean 'kd'",
    ),
    'pictures of a report': (
        'report.py work_dirs/kd --pictures -1 --out new.html',
        '--pictures should be at least 0, but got -1',
    ),
    'names of two runs that are one name': (
        'report.py work_dirs/kd work_dirs/alone --names a a --out new.html',
        'names should be 2, one per work directory, but got 1',
    ),
    'names of a report': (
        'report.py work_dirs/kd --names a b --out new.html',
        'names should be 1, one per work directory',
    ),
    # others
    'processes of a labelling': (
        'pseudo_label.py student.py student.pth work_dirs -o new --workers -1',
        '--workers should be at least 0, but got -1',
    ),
    'robustness of the teacher': (
        'robustness.py kd.py teacher.pth --metric mIoU --out-dir new',
        'teacher.pth should fit |but only ',
    ),
    'plan that is not there': ('benchmark.py plan.yaml --work-dir new', 'plan.yaml'),
    'scenes in a folder in use': (
        'make_scenes.py work_dirs --train 1 --val 1',
        "'work_dirs' exists and was made or edit",
    ),
    'scenes that are too small': ('make_scenes.py new --size 3', 'size should be at least '),
}
#: For a detector alone: its data are in one annotation file.
DETECTOR = {
    'levels that are not there': (
        f'{MAKE} teacher.pth --method mse --features neck[0:9] -o new.py',
        "tap 'neck[0:9]' does not fit: the module returned 3 items",
    ),
    'annotations of zero bytes': (
        'train.py no_bytes.py',
        'train_dataloader should have data that can be read, but |no_bytes.json',
    ),
    'annotations that are broken': (
        'train.py broken_json.py',
        'train_dataloader should have data that can be read, but |broken_json.json',
    ),
    'annotations without boxes': (
        'train.py no_boxes.py',
        'train_dataloader should have images with annotations, but |no_boxes.json|has none',
    ),
    'classes in capitals': ('train.py capitals.py', 'classes of train_dataloader should be among |(capitals matter)'),
    'annotations that are not there': (
        'train.py no_file.py',
        'ann_file of train_dataloader should be an existing file',
    ),
    'images that are not there': (
        'train.py no_images.py',
        'images of train_dataloader should be there, but',
    ),
}
SEGMENTER = {
    'label maps that are not there': ('train.py no_maps.py', 'label maps of train_dataloader should be there|missing'),
    'images of another suffix': (
        'train.py no_suffix.py',
        'train_dataloader should have images with annotations, but |has none',
    ),
}
#: What has nothing to do with the model is tried with the detector alone.
ALIKE = (
    'exist',
    'edited',
    'not there',
    'no Python',
    'notes',
    'key of',
    'is a file',
    'scenes',
    'names',
    'code',
    'method',
)
CASES = {
    **{f'det: {name}': case for name, case in {**BOTH, **DETECTOR}.items()},
    **{f'seg: {name}': case for name, case in BOTH.items() if not any(word in name for word in ALIKE)},
    **{f'seg: {name}': case for name, case in SEGMENTER.items()},
}
