#include "eval/language_words.h"

namespace lathe {

std::span<const Language> languages() {
  static constexpr Language kLanguages[] = {
      {"en", Script::kLatin,
       "the of and to a in is that it for was on are as with his they at be this from have or had "
       "by but not what all were when we there can an your which their said if do will each about "
       "how up out them then she many some so these would other into has more her like him see "
       "time could no make than been its who now people my made over did down only way find use "
       "may our i you he me us am just any also because should here please thank dear hello very "
       "after most through where much before right too even such because think know good new "
       "first want need help world day great best let get go come take well why while",
       ""},
      {"es", Script::kLatin,
       "de la que el en y a los del se las por un para con no una su al lo como más pero sus le ya "
       "o este sí porque esta entre cuando muy sin sobre también me hasta hay donde quien desde "
       "todo nos durante todos uno les ni contra otros ese eso ante ellos e esto mí antes algunos "
       "qué unos yo otro otras otra él tanto esa estos mucho nada muchos cual es ser son está "
       "tiene puede hacer fue era hola gracias bueno usted tu ha han si así cada bien",
       "ñ"},
      {"pt", Script::kLatin,
       "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao "
       "ele das tem à seu sua ou ser quando muito há nos já está eu também só pelo pela até isso "
       "ela entre era depois sem mesmo aos ter seus quem nas me esse eles estão você tinha foram "
       "essa num nem suas meu às minha têm numa pelos havia seja qual será nós tenho lhe deles "
       "são pode fazer obrigado bom olá vocês então sobre porque onde cada todos",
       "ãõ"},
      {"fr", Script::kLatin,
       "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il "
       "sont avec son sa aux mais comme ou si leur y dont elle nous vous ils ses cette été être "
       "fait tout même ces aussi bien peut sans je tu mon ma mes notre votre où très quand deux "
       "après entre car cela donc encore faire chaque toujours bonjour merci "
       "avez avons on ont était peu",
       "œêèûù"},
      {"de", Script::kLatin,
       "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es "
       "an werden aus er hat dass sie nach wird bei einer um am sind noch wie einem über einen so "
       "zum war haben nur oder aber vor zur bis mehr durch man sein wurde wenn können ich wir ihr "
       "mein dein unser kann sehr schon hier was diese dieser dieses alle muss soll mich mir uns "
       "ihnen ihre gegen vom immer wieder hallo danke bitte weil wo keine kein unter zwischen",
       "ßäöü"},
      {"it", Script::kLatin,
       "di e il la che in un a per è una sono con non del da si le dei come al nel alla i più gli "
       "della lo ha anche o ma se delle ed questo questa mi ci tra ad su nella dal molto essere "
       "suo sua loro perché quando quello cosa chi dove tutti tutto può sia stato fatto io tu lui "
       "lei noi voi ogni poi così già senza dopo prima dalla degli sulla ai agli alle ciao grazie "
       "bene buon ho hai abbiamo era solo ancora fare",
       "ìòù"},
      {"nl", Script::kLatin,
       "de en van ik te dat die in een hij het niet zijn is was op aan met als voor had er maar om "
       "hem dan zou of wat mijn men dit zo door over ze zich bij ook tot je mij uit der daar haar "
       "naar heb hoe heeft hebben deze u want nog zal me zij nu geen omdat iets worden toch al "
       "waren veel meer doen toen moet ben zonder kan hun dus alles onder ja wij ons jij bent "
       "wordt hallo bedankt deze elke goed maken",
       ""},
      {"af", Script::kLatin,
       "die en van is in het te nie dat vir wat met ek op hy sy om was ook aan sal kan by as maar "
       "deur hulle ons jou jy word een na uit my hom haar nie dit daar wees moet baie so of "
       "gaan soos nog oor toe wil meer tussen omdat hierdie elke waar hoe dankie asseblief het",
       "ê"},
      {"sv", Script::kLatin,
       "och i att det som en på är av för med den till inte om ett men jag har de vi var han du "
       "kan så från när ut sig vill ska där min mig hon eller nu vad över under alla också hade "
       "mycket hur bara blir blev vara mot andra skulle efter upp mer då genom utan mellan någon "
       "denna detta dig hej tack er ni mina din varje göra finns",
       "åäö"},
      {"da", Script::kLatin,
       "og i at det er en til af på for med den de ikke der har som et jeg var vi han om kan så "
       "men fra du sig vil skal hun også eller havde blev ud nu hvad når over efter bliver meget "
       "min mig hvor kun alle være op mod andre ville mere da mellem uden noget denne dette dig "
       "hej tak hver af hvis fordi selv sin deres dem os bruge gøre ved",
       "øåæ"},
      {"no", Script::kLatin,
       "og i det er en til av på for med at som den de ikke har et jeg var vi han om kan så men "
       "fra du seg vil skal hun også eller hadde ble ut nå hva når over etter blir mye min meg "
       "hvor bare alle være opp mot andre ville mer da mellom uten noe denne dette deg hei takk "
       "hver hvis fordi selv sin deres dem oss bruke gjøre ved mange sammen noen må ditt deg "
       "gyldig "
       "kun inn skriv flere annet første etter",
       "øåæ"},
      {"fi", Script::kLatin,
       "ja on ei että se oli hän joka en mutta niin kuin myös ovat tai jos minä sinä me te he mitä "
       "kun vain ole olen olet olemme nyt jo sitten ollut kaikki sen tämä tämän hänen mukaan sekä "
       "voi kanssa jonka joita siitä niitä jotka ennen jälkeen hyvä hyvin kiitos hei minun sinun "
       "meidän heidän olla oma koko vielä näin siis koska missä miten tässä siellä moni paljon "
       "voit voivat pitää tulee sitä ne nämä",
       "äö"},
      {"et", Script::kLatin,
       "ja on ei et see oli ta kui ka mis aga nii või kes ma sa me te nad siis oma seda selle mida "
       "veel ainult kõik pärast enne väga tere aitäh minu sinu meie olla olen oled sest kus kuidas "
       "palju hea saab võib peab tema ning juba üks välja üle läbi ole nende siin seal poolt",
       "õäöü"},
      {"pl", Script::kLatin,
       "i w na z się do nie to że jest o od za jak po a przez dla co tak ale ma są czy być już "
       "tylko tym który która które może ich jego jej był była było tego ze przy także oraz gdy "
       "bardzo jako pod nad lub bez można kiedy gdzie ja ty my wy oni jestem mnie mój moja nas "
       "was dziękuję dzień cześć proszę każdy wszystko jeszcze więc ten ta te",
       "łąężźśćń"},
      {"cs", Script::kLatin,
       "a se v na je že to s z o do i ve jako za by ale po jsou si pro podle jeho které který "
       "která jsem jsme jste byl byla bylo od tak co nebo jak když už mezi své také může být není "
       "až ještě velmi jen této bude mít jejich tento protože kde děkuji dobrý den já ty my "
       "všechno každý aby před při nad pod",
       "ěůřčšžýáí"},
      {"sk", Script::kLatin,
       "a sa v na je že to s z o do i vo ako za by ale po sú si pre podľa jeho ktoré ktorý ktorá "
       "som sme ste bol bola bolo od tak čo alebo keď už medzi svoje tiež môže byť nie je až ešte "
       "veľmi len tejto bude mať ich tento pretože kde ďakujem dobrý deň ja ty my všetko každý "
       "aby pred pri nad pod",
       "ľĺŕôäčšžýáí"},
      {"hr", Script::kLatin,
       "i u je se na da su za od a s ne o što koji kao to ili iz te bi po do će sam ali nije bio "
       "bila samo još kako koja koje nakon prema između također može biti smo ste već gdje kada "
       "ako vrlo svi sve hvala dobar dan ja ti mi vi oni moj moja naš jer bez kroz treba ima",
       "čćšžđ"},
      {"sl", Script::kLatin,
       "in je v na se da so za od z s ne o ki kot to ali iz pa bi po do bo sem tudi ni bil bila "
       "samo še kako ker kateri katera med lahko biti smo ste že kjer kdaj če zelo vsi vse hvala "
       "dober dan jaz ti mi vi oni moj moja naš brez skozi treba ima pri tem",
       "čšž"},
      {"hu", Script::kLatin,
       "a az és hogy nem is egy ez van de meg csak már azt el mint volt ha még ki én te ő mi ti ők "
       "be vagy ezt fel sem minden lehet kell nagyon után szerint között amely aki ami akkor mert "
       "pedig lesz így itt ott hol mikor köszönöm jó szia vagyok vagyunk nincs más több első",
       "őűö"},
      {"ro", Script::kLatin,
       "de și în a la cu pe nu că este o un să din care se pentru mai ce au al sau prin după fost "
       "dar am are lui ei el ea noi voi eu tu sunt era fi foarte acest această acesta când unde "
       "cum toate tot între fără despre către chiar doar decât bună mulțumesc fiecare poate face "
       "ale unei unui cel cea va fiind",
       "ășțâîşţ"},
      {"tr", Script::kLatin,
       "ve bir bu da de için ile çok olarak daha olan gibi en kadar var ne o ben sen biz siz onlar "
       "değil mi mı ama veya ya sonra önce her şey iyi nasıl neden nerede zaman olduğu oldu olur "
       "bana sana beni seni onun benim senin bizim merhaba teşekkür ederim lütfen ki hem ise "
       "tarafından üzerinde içinde arasında diye bunu yok büyük yeni",
       "ğış"},
      {"vi", Script::kLatin,
       "và của là có không được cho một những các với người trong này đã để khi đến từ về như tôi "
       "bạn chúng ta anh em ông bà đó ở ra vào lại nhiều rất cũng thì mà hay hoặc nếu vì nên sẽ "
       "đang phải làm gì nào năm ngày việc xin chào cảm ơn theo trên dưới sau trước",
       "đơưăạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ"},
      {"id", Script::kLatin,
       "yang dan di ini itu dengan untuk dari dalam tidak pada akan adalah ke karena juga oleh "
       "saya kami kita anda dia mereka ada sudah telah bisa dapat atau seperti lebih sangat hanya "
       "jika maka tetapi namun saat para banyak satu dua hari tahun orang terima kasih selamat "
       "apa siapa bagaimana lagi bahwa sebagai secara setiap agar harus semua kepada",
       ""},
      {"tl", Script::kLatin,
       "ang ng sa na mga at ay ito ko mo si ni ka hindi para kung may po siya kami tayo ako ikaw "
       "nila niya namin natin lang din rin pa ba kay nang o ano sino saan kailan bakit paano "
       "dahil kaya pero isang isa dalawa araw tao salamat kumusta maging lahat mula bawat wala",
       ""},
      {"sw", Script::kLatin,
       "na ya wa kwa ni katika la za cha kuwa hii hiyo huu huo hizo hili yake wake wao watu mtu "
       "kama lakini pia au si sana kila moja mbili yangu wangu wako yako yetu wetu mimi wewe sisi "
       "ninyi yeye hivyo kwamba ambaye ambayo ambao hakuna kuna baada kabla wakati siku mwaka "
       "nini nani wapi jinsi asante habari karibu kutoka hadi bila vya zao kufanya kupata ili "
       "mwenye nzuri kubwa tu bado",
       ""},
      {"so", Script::kLatin,
       "waa oo iyo in ka ku ee uu ay la ah si u soo aan ayaa waxaa kale mid wax badan dad sida "
       "kala isaga iyada aniga adiga annaga idinka kuwa waxay waxuu markii laakiin ama haddii "
       "maxaa maalin sannad mahadsanid wanaagsan leh lahaa yahay tahay",
       ""},
      {"sq", Script::kLatin,
       "të e në i dhe që për një me është nga u se nuk do si më ka ishte janë por kjo ky ai ajo "
       "unë ti ne ju ata edhe ose kur ku pa deri duke pas mund shumë çdo gjithë vetëm kam keni "
       "faleminderit mirë përshëndetje tij saj tyre sepse këtë asnjë",
       "ë"},
      {"ca", Script::kLatin,
       "de la i el que en a les un una per els amb no és del al es més com dels ha o són "
       "aquest aquesta però seva seu també molt quan on ser entre sense fins tot totes tots jo tu "
       "ell ella nosaltres vosaltres gràcies bon dia perquè què qui pot fer cada hi ens us ho "
       "sobre després des",
       "ŀ"},
      {"cy", Script::kLatin,
       "y yr a ac i o yn ar am at gan mae oedd ei eu fy dy ein wedi bod yw nid ond neu fel bydd "
       "hyn hon hwn dim mwy iawn pan lle sut pam pwy beth diolch bore da ydy ydyn nhw chi "
       "ni fi hi ef hefyd rhwng drwy heb cael gwneud pob",
       "ŵŷ"},
      {"lt", Script::kLatin,
       "ir yra į kad su iš tai kaip bet ne ar buvo per o jis ji jo jos aš tu mes jūs jie nuo iki "
       "po už dėl apie taip pat gali būti labai tik dar kur kada kas ką kiekvienas ačiū laba diena "
       "mano tavo mūsų savo kurie kuri kuris nėra arba jau",
       "ėųįčšž"},
      {"lv", Script::kLatin,
       "un ir ar no uz par ka kas tas tā kā bet ne vai bija pēc es tu mēs jūs viņš viņa viņi pie "
       "līdz dēļ arī var būt ļoti tikai vēl kur kad ko katrs paldies labdien mans tavs mūsu savu "
       "kuri kura kurš nav jau tiek gan lai",
       "āēīūģķļņčšž"},
      {"el", Script::kGreek, "", ""},
      {"ru", Script::kCyrillic,
       "и в не на я что он с как это по но из у за вы так же от все бы для мы то она к о который "
       "меня его есть было были быть только уже когда если или ещё еще мне ты они их очень этот "
       "эта может чтобы где нет до вот при даже под после через здравствуйте спасибо один",
       "ыэё"},
      {"uk", Script::kCyrillic,
       "і в не на що я він з як це по але із у за ви так же від все б для ми то вона до про який "
       "мене його є було були бути тільки вже коли якщо або ще мені ти вони їх дуже цей ця може "
       "щоб де немає та й після через вітаю дякую один та також",
       "іїєґ"},
      {"bg", Script::kCyrillic,
       "и на да в се не за от с е са че като по това ще но до си към които който която при или "
       "след може само има беше са той тя те ние вие аз ти ми му ѝ те го я ги още много така "
       "когато където ако във със през между без всички един една едно благодаря здравейте трябва "
       "също бъде",
       "ъ"},
      {"mk", Script::kCyrillic,
       "и на да во се не за од со е сум дека како по ова ќе но до си кон кои кој која при или по "
       "може само има беше тој таа тие ние вие јас ти ми му го ја ги уште многу така кога каде ако "
       "меѓу без сите еден една едно благодарам здраво треба исто",
       "јќѓљњџѕ"},
      {"he", Script::kHebrew, "", ""},
      {"ar", Script::kArabic,
       "في من على إلى أن هذا هذه التي الذي عن مع ما لا كان كانت أو هو هي قد ذلك كل بعد بين لم إن "
       "حيث يكون تكون نحن أنا أنت هم ثم قبل عند حتى أي ليس لكن إذا كما غير يمكن شكرا مرحبا الى",
       "ةىيكأإؤئ"},
      {"fa", Script::kArabic,
       "و در به از که این را با است برای آن یک خود تا بر هم می شد شود شده بود کرد کند کنید هر یا "
       "ما من تو شما آنها او نیز باید اگر اما هیچ چه چون پس بین روی های ها ای همه دیگر بسیار "
       "سلام متشکرم ممنون دارد داشت باشد نمی",
       "یکپچژگ"},
      {"ur", Script::kArabic,
       "کے میں کی ہے اور سے کا کو اس کہ پر ہیں نے یہ ایک بھی ہم تھا تھی تھے ہو گیا لئے لیے کر جو "
       "وہ نہیں ان تو کیا آپ مجھے تم میرا میری اپنے ساتھ بعد جب اگر کوئی بہت شکریہ سلام ہوتا ہوتی "
       "کریں رہا ہی یا",
       "ٹڈڑںےہھ"},
      {"hi", Script::kDevanagari,
       "के में की है और से का को हैं पर ने यह एक भी हम था थी थे हो गया लिए कर जो वह नहीं इस उस तो "
       "क्या आप मुझे तुम मेरा मेरी अपने साथ बाद जब अगर कोई बहुत धन्यवाद नमस्ते होता होती करें रहा "
       "ही या कि ये मैं करने इसे अपनी हमें तक लेकिन किया जाता सकते",
       ""},
      {"mr", Script::kDevanagari,
       "आहे आणि आहेत या मध्ये च्या ते तो ती हे ही हा एक व का काय नाही होते होता होती मी तू आम्ही "
       "तुम्ही आपण आपल्या त्या त्यांनी त्यांच्या त्याच्या साठी किंवा पण जर तर असे असा अशी केले "
       "केला करा करून करण्यासाठी करण्यात झाले झाला म्हणून माझ्या माझे तुमच्या तुमचे धन्यवाद "
       "नमस्कार सर्व खूप आता येथे कसे आम्हाला मला तुम्हाला असलेल्या शकता ला ने मात्र जे",
       "ळ"},
      {"ne", Script::kDevanagari,
       "छ र को का मा ले लाई हो छन् यो त्यो एक पनि भने गर्न गर्ने भएको गरेको छैन हुन् हुन्छ थियो "
       "थिए म तपाईं तपाईंको हामी उनी उनले मेरो हाम्रो तिमी अनि तर वा यदि जब धेरै सबै धन्यवाद "
       "नमस्ते लागि सँग बाट भयो गरे गर्नुहोस् हुने रहेको यस त्यस कुनै गरी अब के किन कसरी",
       ""},
      {"bn", Script::kBengali, "", ""},
      {"pa", Script::kGurmukhi, "", ""},
      {"gu", Script::kGujarati, "", ""},
      {"ta", Script::kTamil, "", ""},
      {"te", Script::kTelugu, "", ""},
      {"kn", Script::kKannada, "", ""},
      {"ml", Script::kMalayalam, "", ""},
      {"th", Script::kThai, "", ""},
      {"ko", Script::kHangul, "", ""},
      {"ja", Script::kKana, "", ""},
      {"zh-cn", Script::kHan, "", "们这国说时会为来个对过还没问样开关长东车马门见让给话语请谢"},
      {"zh-tw", Script::kHan, "", "們這國說時會為來個對過還沒問樣開關長東車馬門見讓給話語請謝"},
  };
  return kLanguages;
}

}  // namespace lathe
