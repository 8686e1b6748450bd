# Registers freekd_mm.EfficientNetLite, which lies beside this file, for configs that have this one among their bases.
_base_ = []  # before the import, by which mmengine 0.8 would know a config in the other style

import sys  # noqa: E402

sys.path.append('{{ fileDirname }}')
custom_imports = dict(imports=['efficientnet_lite'])
