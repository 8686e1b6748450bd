# Registers freekd_mm.EfficientNetLite, which lies beside this file, for configs that have this one among their bases.
import sys

sys.path.append('{{ fileDirname }}')
custom_imports = dict(imports=['efficientnet_lite'])
