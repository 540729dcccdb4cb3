"""Language labels: sentences in about 20 languages, 13 classes, a prompt with rules, and thinking that applies the rules.

Sentences combine clauses, times and places that we wrote for each language, in the word order of that language.
"""

from __future__ import annotations

import random

from distill_lab.tiny.item import Item

LABELS = ("ar", "de", "el", "en", "es", "fr", "hi", "ot", "ru", "tr", "ur", "vi", "zh")

RULES = """You label the language of a text. Answer with one label and nothing else.
Labels: ar, de, el, en, es, fr, hi, ot, ru, tr, ur, vi, zh.
Use the first rule that fits.
Rule 1: Devanagari script is hi.
Rule 2: Greek script is el.
Rule 3: Cyrillic script is ru.
Rule 4: Han script without kana is zh.
Rule 5: Arabic script with Urdu letters is ur.
Rule 6: other Arabic script is ar.
Rule 7: any other script that is not Latin is ot.
Rule 8: Latin script with Vietnamese marks is vi.
Rule 9: Latin script with Turkish words is tr.
Rule 10: Latin script with German words is de.
Rule 11: Latin script with French words is fr.
Rule 12: Latin script with Spanish words is es.
Rule 13: Latin script with English words is en.
Rule 14: any other text is ot."""

# For each language: label, the teacher's thinking, order of the parts (t time, c clause, p place), times, clauses, places.
# Parts of a list are separated by "|".
_TABLE = [
    ("en", "The script is Latin. The words are English. Rule 13 gives en.", "t, c p",
     "today|yesterday|this morning|in the evening|every day|last week",
     "she reads a book|he drinks tea|we see a bird|they sing a song|my brother works|the child is sleeping|"
     "I write a letter|the dog is hungry|you cook the fish|nobody knows the answer",
     "at home|in the garden|near the river|in the city|at school|on the street"),
    ("de", "The script is Latin. The words are German. Rule 10 gives de.", "t c p",
     "heute|gestern|am Morgen|am Abend|jeden Tag|manchmal",
     "liest sie ein Buch|trinkt er Tee|sehen wir einen Vogel|singen die Kinder ein Lied|arbeitet mein Bruder|"
     "wartet der Lehrer|schreibe ich einen Brief|sucht der Hund das Brot|kochen wir den Fisch|spielt das Kind",
     "zu Hause|im Garten|am Fluss|in der Stadt|in der Schule|auf der Straße"),
    ("fr", "The script is Latin. The words are French. Rule 11 gives fr.", "t, c p",
     "aujourd'hui|hier|le matin|le soir|chaque jour|parfois",
     "elle lit un livre|il boit du thé|nous voyons un oiseau|les enfants chantent une chanson|mon frère travaille|"
     "le chien cherche du pain|j'écris une lettre|vous préparez le poisson|la fille joue|il ne sait pas pourquoi",
     "à la maison|dans le jardin|près de la rivière|en ville|à l'école|dans la rue"),
    ("es", "The script is Latin. The words are Spanish. Rule 12 gives es.", "t c p",
     "hoy|ayer|por la mañana|por la noche|cada día|a veces",
     "ella lee un libro|él bebe agua|nosotros vemos un pájaro|los niños cantan una canción|mi hermano trabaja|"
     "el perro busca el pan|yo escribo una carta|ustedes cocinan el pescado|la niña juega|el maestro espera",
     "en casa|en el jardín|cerca del río|en la ciudad|en la escuela|en la calle"),
    ("tr", "The script is Latin. The words are Turkish. Rule 9 gives tr.", "t p c",
     "bugün|dün|sabah|akşam|her gün|bazen",
     "kitap okuyor|çay içiyor|bir kuş görüyoruz|çocuklar şarkı söylüyor|kardeşim çalışıyor|köpek ekmek arıyor|"
     "mektup yazıyorum|balık pişiriyorsunuz|kız oynuyor|öğretmen bekliyor",
     "evde|bahçede|nehrin yanında|şehirde|okulda|sokakta"),
    ("vi", "The script is Latin with Vietnamese marks. Rule 8 gives vi.", "t c p",
     "hôm nay|hôm qua|buổi sáng|buổi tối|mỗi ngày|đôi khi",
     "cô ấy đọc sách|anh ấy uống trà|chúng tôi thấy một con chim|trẻ em hát một bài hát|anh trai tôi làm việc|"
     "con chó tìm bánh mì|tôi viết một lá thư|các bạn nấu cá|cô gái chơi|thầy giáo chờ đợi",
     "ở nhà|trong vườn|gần sông|trong thành phố|ở trường|trên đường"),
    ("el", "The script is Greek. Rule 2 gives el.", "t c p",
     "σήμερα|χθες|το πρωί|το βράδυ|κάθε μέρα|μερικές φορές",
     "εκείνη διαβάζει ένα βιβλίο|αυτός πίνει τσάι|βλέπουμε ένα πουλί|τα παιδιά τραγουδούν|ο αδελφός μου δουλεύει|"
     "ο σκύλος ψάχνει ψωμί|γράφω ένα γράμμα|μαγειρεύετε το ψάρι|το κορίτσι παίζει|ο δάσκαλος περιμένει",
     "στο σπίτι|στον κήπο|κοντά στο ποτάμι|στην πόλη|στο σχολείο|στον δρόμο"),
    ("ru", "The script is Cyrillic. Rule 3 gives ru.", "t c p",
     "сегодня|вчера|утром|вечером|каждый день|иногда",
     "она читает книгу|он пьёт чай|мы видим птицу|дети поют песню|мой брат работает|собака ищет хлеб|"
     "я пишу письмо|вы готовите рыбу|девочка играет|учитель ждёт",
     "дома|в саду|у реки|в городе|в школе|на улице"),
    ("ru", "The script is Cyrillic. Rule 3 gives ru.", "t c p",
     "днес|вчера|сутрин|вечер|всеки ден|понякога",
     "тя чете книга|той пие чай|ние виждаме птица|децата пеят песен|брат ми работи|кучето търси хляб|"
     "аз пиша писмо|вие готвите риба|момичето играе|учителят чака",
     "вкъщи|в градината|край реката|в града|в училище|на улицата"),
    ("hi", "The script is Devanagari. Rule 1 gives hi.", "t p c",
     "आज|कल|सुबह|शाम को|हर दिन|कभी कभी",
     "वह किताब पढ़ती है|वह चाय पीता है|हम एक चिड़िया देखते हैं|बच्चे गाना गाते हैं|मेरा भाई काम करता है|"
     "कुत्ता रोटी खोजता है|मैं चिट्ठी लिखता हूँ|आप मछली पकाते हैं|लड़की खेलती है|शिक्षक इंतज़ार करता है",
     "घर में|बाग में|नदी के पास|शहर में|स्कूल में|सड़क पर"),
    ("ur", "The script is Arabic with Urdu letters. Rule 5 gives ur.", "t p c",
     "آج|کل|صبح کو|شام کو|ہر روز|کبھی کبھی",
     "وہ کتاب پڑھتی ہے|وہ چائے پیتا ہے|ہم ایک چڑیا دیکھتے ہیں|بچے گانا گاتے ہیں|میرا بھائی کام کرتا ہے|"
     "کتا روٹی ڈھونڈتا ہے|میں خط لکھتا ہوں|آپ مچھلی پکاتے ہیں|لڑکی کھیلتی ہے|استاد انتظار کرتا ہے",
     "گھر میں|باغ میں|دریا کے پاس|شہر میں|اسکول میں|سڑک پر"),
    ("ar", "The script is Arabic without Urdu letters. Rule 6 gives ar.", "t c p",
     "اليوم|أمس|في الصباح|في المساء|كل يوم|أحيانا",
     "هي تقرأ كتابا|هو يشرب الشاي|نحن نرى طائرا|الأطفال يغنون أغنية|أخي يعمل|الكلب يبحث عن الخبز|"
     "أنا أكتب رسالة|أنتم تطبخون السمك|البنت تلعب|المعلم ينتظر",
     "في البيت|في الحديقة|قرب النهر|في المدينة|في المدرسة|في الشارع"),
    ("zh", "The script is Han without kana. Rule 4 gives zh.", "tpc",
     "今天|昨天|早上|晚上|每天|有时候",
     "她看书|他喝茶|我们看见一只鸟|孩子们唱歌|我哥哥工作|狗找面包|我写信|你们做鱼|女孩玩|老师等着",
     "在家里|在花园里|在河边|在城里|在学校|在街上"),
    ("ot", "The script is Han with kana. Rule 7 gives ot.", "tpc",
     "今日は|昨日は|朝に|夜に|毎日|時々",
     "彼女は本を読みます|彼はお茶を飲みます|私たちは鳥を見ます|子供たちは歌を歌います|兄は働きます|犬はパンを探します",
     "家で|庭で|川の近くで|町で|学校で|道で"),
    ("ot", "The script is Hangul. Rule 7 gives ot.", "t p c",
     "오늘|어제|아침에|저녁에|매일|가끔",
     "그녀는 책을 읽어요|그는 차를 마셔요|우리는 새를 봐요|아이들은 노래를 불러요|형은 일해요|개는 빵을 찾아요",
     "집에서|정원에서|강 옆에서|도시에서|학교에서|길에서"),
    ("ot", "The script is Thai. Rule 7 gives ot.", "t c p",
     "วันนี้|เมื่อวาน|ตอนเช้า|ตอนเย็น|ทุกวัน|บางครั้ง",
     "เธออ่านหนังสือ|เขาดื่มชา|เราเห็นนก|เด็กๆร้องเพลง|พี่ชายทำงาน|หมาหาขนมปัง",
     "ที่บ้าน|ในสวน|ใกล้แม่น้ำ|ในเมือง|ที่โรงเรียน|บนถนน"),
    ("ot", "The script is Hebrew. Rule 7 gives ot.", "t c p",
     "היום|אתמול|בבוקר|בערב|כל יום|לפעמים",
     "היא קוראת ספר|הוא שותה תה|אנחנו רואים ציפור|הילדים שרים שיר|אחי עובד|הכלב מחפש לחם",
     "בבית|בגן|ליד הנהר|בעיר|בבית הספר|ברחוב"),
    ("ot", "The script is Latin. The words fit no rule before. Rule 14 gives ot.", "t c p",
     "oggi|ieri|al mattino|di sera|ogni giorno|qualche volta",
     "lei legge un libro|lui beve il tè|noi vediamo un uccello|i bambini cantano|mio fratello lavora|il cane cerca il pane",
     "a casa|nel giardino|vicino al fiume|in città|a scuola|per strada"),
    ("ot", "The script is Latin. The words fit no rule before. Rule 14 gives ot.", "t c p",
     "leo|jana|asubuhi|jioni|kila siku|mara nyingine",
     "yeye anasoma kitabu|yeye anakunywa chai|sisi tunaona ndege|watoto wanaimba wimbo|kaka yangu anafanya kazi|"
     "mbwa anatafuta mkate",
     "nyumbani|bustanini|karibu na mto|mjini|shuleni|barabarani"),
]  # fmt: skip
_ENDS = [".", "!", "...", ""]


def _languages() -> dict[str, list[tuple[str, str, list[str], list[str], list[str]]]]:
    table: dict[str, list[tuple[str, str, list[str], list[str], list[str]]]] = {}
    for label, thinking, order, times, clauses, places in _TABLE:
        parts = (times.split("|"), clauses.split("|"), places.split("|"))
        table.setdefault(label, []).append((thinking, order, *parts))
    return table


_LANGUAGES = _languages()


def item(rng: random.Random) -> Item:
    """One sentence with its label; every class is equally likely."""
    label = rng.choice(LABELS)
    thinking, order, times, clauses, places = rng.choice(_LANGUAGES[label])
    parts = {"t": rng.choice(times), "c": rng.choice(clauses), "p": rng.choice(places)}
    sentence = "".join(parts.get(letter, letter) for letter in order)
    if rng.random() < 0.3:
        sentence = parts["c"] + ("" if " " not in order else " ") + parts["p"]
    sentence = sentence[0].upper() + sentence[1:] + rng.choice(_ENDS)
    return {"question": sentence, "output": label, "thinking": thinking, "answer": label, "meta": {"type": label}}
